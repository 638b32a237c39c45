"""Which engines a repository for NVIDIA cards has: one per stage and variant, the denoiser's once per policy."""

from collections.abc import Mapping
from dataclasses import dataclass

from sana_build.gpus import Gpu, architectures, editions
from sana_build.precision import Requested
from sana_quant.groups import PROMPT_GROUPS, layers
from sana_quant.policy import Policy


@dataclass(frozen=True)
class EngineJob:
    """One engine to build; `policy` is of the denoiser's layers, and `name` the stem of the engine's file.

    `gdn` is the form of its GDN cores, and `cores` are the nodes that have to be layers of our plugin.
    """

    stage: str
    variant: str
    name: str
    policy: Policy
    sms: tuple[int, ...]
    wanted: tuple[Requested, ...] = ()
    gdn: str = "native"
    cores: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.stage}/{self.name}"

    @property
    def narrow(self) -> bool:
        return any(entry.narrow for entry in self.wanted)


def engine_jobs(stages: Mapping[str, tuple[str, ...]], gpu: Gpu, policy: Policy, depth: int) -> list[EngineJob]:
    """One job per stage and variant; a family has the denoiser's once per policy that its cards need.

    All other stages run in the precision that the policy has for layers outside its groups.
    """
    jobs = []
    for stage, variants in stages.items():
        for variant in variants:
            if stage == "denoiser":
                jobs += _denoiser_jobs(variant, gpu, policy, depth)
            else:
                jobs.append(EngineJob(stage, variant, variant, policy, architectures(gpu.cards)))
    return jobs


def _denoiser_jobs(variant: str, gpu: Gpu, policy: Policy, depth: int) -> list[EngineJob]:
    every = editions(gpu, policy, depth)
    names = [f"{variant}-{edition.policy.name}" if len(every) > 1 else variant for edition in every]
    return [
        EngineJob(
            "denoiser", variant, name, edition.policy, edition.sms, tuple(requested(edition.policy, variant, depth))
        )
        for name, edition in zip(names, every, strict=True)
    ]


def requested(policy: Policy, variant: str, depth: int) -> list[Requested]:
    """What the policy asks of the denoiser's engine called `variant`."""
    return [
        Requested(layer.path, layer.group, policy.precision(layer.group, layer.block))
        for layer in layers(depth)
        if (layer.group in PROMPT_GROUPS) == (variant == "prompt")
    ]
