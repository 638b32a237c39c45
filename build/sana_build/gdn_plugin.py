"""The GDN plugin in a build: which engines hold it, how they are compiled, and the check that every core became one."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.engine_jobs import EngineJob
from sana_build.gpus import Gpu
from sana_build.layer_table import CUSTOM, EngineLayer
from sana_build.precision import GroupRow
from sana_build.tensorrt_build import TensorRTPlan, build_plan
from sana_runtime.errors import BuildError, ConfigError, choose

if TYPE_CHECKING:
    from sana_export.configs import DiTConfig

NATIVE = "native"
GDN = {NATIVE: NATIVE, "plugin": "plugin-bf16"}
"""What --gdn can name, and the form in which GDN cores are exported for it."""

PACKAGE = "sana_kernels"
"""What an engine with the plugin needs at run time, beside the runtime."""

UNVERIFIED = "its GDN plugin has never run inside an engine"


def check_gdn(name: str, gpu: Gpu) -> None:
    """Raise ConfigError for an unknown form, and for the plugin where it cannot be built or has no engine to be in."""
    choose("--gdn", name, GDN)
    if name == NATIVE:
        return
    if gpu.backend != "tensorrt_rtx":
        raise ConfigError(f"--gdn {name} is for TensorRT-RTX and --gpu {gpu.name} runs {gpu.backend}: use {NATIVE}")
    if find_spec("triton") is None:
        raise ConfigError(
            f"--gdn {name} compiles kernels with Triton, which is not installed: run `pip install triton`"
        )


def with_gdn(jobs: Iterable[EngineJob], name: str, dit: "DiTConfig") -> list[EngineJob]:
    """The jobs with the GDN cores of their engines in the form called `name`; prompts pass through no core."""
    from sana_kernels.node import NAME

    blocks = (block for block in range(dit.depth) if block not in dit.softmax_blocks)
    cores = tuple(f"blocks.{block}.attn/{NAME}" for block in blocks) if name != NATIVE else ()
    return [
        replace(job, gdn=GDN[name], cores=cores) if job.stage == "denoiser" and job.variant != "prompt" else job
        for job in jobs
    ]


def build_plan_with_plugin(onnx: Path, plan: Path, backend: str, sms: tuple[int, ...], log: Path) -> TensorRTPlan:
    """tensorrt_build.build_plan of a graph with nodes of our plugin, whose kernels are compiled meanwhile."""
    register()
    return build_plan(onnx, plan, backend, sms, log)


def register() -> None:
    """Make the plugin known to this process; raises BuildError saying what to do where that cannot be."""
    from sana_kernels.errors import KernelError

    try:
        from sana_kernels import plugin

        plugin.register()
    except (ImportError, KernelError) as error:
        raise BuildError(f"the GDN plugin cannot be registered: {error}") from error


def check_cores(engine: str, layers: Iterable[EngineLayer], job: EngineJob) -> list[GroupRow]:
    """A row for the table of groups, none without cores of ours; raises BuildError naming the first core that is wrong.

    Every core has to be one custom layer of its own, and there are no other custom layers.
    """
    found = [layer.nodes for layer in layers if layer.type == CUSTOM]
    for core in job.cores:
        if found.count((core,)) != 1:
            raise BuildError(
                f"{engine}: {core} is {found.count((core,))} custom layers of the engine, and should be one"
            )
    if strangers := [nodes for nodes in found if not _ours(nodes, job.cores)]:
        raise BuildError(
            f"{engine}: the engine has a custom layer of {' and '.join(strangers[0])}, which is no GDN core"
        )
    return [GroupRow("GDN core", job.gdn, len(job.cores), len(found), 0)] if job.cores else []


def _ours(nodes: Sequence[str], cores: Sequence[str]) -> bool:
    return len(nodes) == 1 and nodes[0] in cores
