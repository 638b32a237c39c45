"""How far the graphs of engines are from the fake-quantised model in PyTorch: measured in a step, without a GPU."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from sana_build.cache import Cache, make_key, source_hash
from sana_build.engine_cache import EXPORTERS, NATIVE_CORE
from sana_quant.policy import Policy
from sana_runtime.errors import BuildError

if TYPE_CHECKING:
    from sana_build.workshop import StepRunner
    from sana_export.checkpoint import Checkpoint
    from sana_export.configs import DiTConfig, ModelConfig
    from sana_export.dit import DiT
    from sana_export.parity import Part
    from sana_quant.calibration import Calibration

LIMIT = 1e-4
FILE = "parity.json"

WHOLE_BELOW = 100e6
"""Parameters of a transformer that is measured as a whole; of a larger one, a block of each kind."""

HALF = 2
"""Of width and height, for blocks: a layer's graph is the same for any number of tokens, and time is not."""

PROGRAM = ("sana_export", "sana_quant", NATIVE_CORE, "sana_build.graph_parity")

Errors = dict[str, dict[str, float]]
"""By variant and part of the transformer, the worst error of any output and of any quantised layer's input."""


def parities(
    model: "ModelConfig",
    checkpoint: "Checkpoint",
    calibration: "Calibration | None",
    policies: Iterable[Policy],
    runner: "StepRunner",
) -> dict[str, Errors]:
    """The errors of every policy by its name, from the cache where they are known.

    Raises BuildError naming the part and the layer that is further than LIMIT from the model.
    """
    keys = {policy.name: _key(model, checkpoint, calibration, policy) for policy in policies}
    missing = {keys[policy.name]: policy for policy in policies if not runner.cache.find("parities", keys[policy.name])}
    if missing:
        runner.run("measure denoiser", measure_parities, model, checkpoint, calibration, missing, runner.cache)
    folders = {name: runner.cache.folder("parities", key) for name, key in keys.items()}
    return {name: json.loads((folder / FILE).read_text()) for name, folder in folders.items()}


def _key(model: "ModelConfig", checkpoint: "Checkpoint", calibration: "Calibration | None", policy: Policy) -> str:
    return make_key(
        weights=checkpoint.identity(),
        model=asdict(model),
        policy=[policy.outside, dict(policy.groups)],
        amax=dict(calibration.amax) if calibration else {},
        program=[source_hash(name) for name in PROGRAM],
        versions={package: version(package) for package in (*EXPORTERS, "onnxruntime")},
    )


def measure_parities(
    model: "ModelConfig",
    checkpoint: "Checkpoint",
    calibration: "Calibration | None",
    policies: Mapping[str, Policy],
    cache: Cache,
) -> None:
    """Measure policies and put what was found into the cache under their keys; weights are loaded once."""
    import torch

    from sana_export.parity import measure
    from sana_quant.calibration import Calibration

    found: dict[str, Errors] = {policy.name: {} for policy in policies.values()}
    for part in _parts(model, checkpoint.load_dit(model.dit, torch.bfloat16)):
        name = _name(part)
        for policy, variant, errors in measure(part, list(policies.values()), calibration or Calibration({})):
            found[policy.name].setdefault(variant, {})[name] = _checked(f"{variant}, {name}", policy, errors)
    for key, policy in policies.items():
        with cache.make("parities", key) as folder:
            (folder / FILE).write_text(json.dumps(found[policy.name], indent=1))


def _parts(model: "ModelConfig", dit: "DiT") -> "Iterator[Part]":
    """The whole transformer if it is small, else the middle one of its GDN blocks and of its softmax blocks."""
    from sana_build.calibrate import small_frames
    from sana_export.parity import Part, block_of

    if sum(parameter.numel() for parameter in dit.parameters()) < WHOLE_BELOW:
        yield Part(model, dit)
        return
    for block in middle_blocks(model.dit):
        yield block_of(small_frames(model, HALF), dit, block)


def middle_blocks(config: "DiTConfig") -> list[int]:
    """The number of one block of each kind."""
    softmax = list(config.softmax_blocks)
    gdn = [block for block in range(config.depth) if block not in softmax]
    return [blocks[len(blocks) // 2] for blocks in (gdn, softmax) if blocks]


def _name(part: "Part") -> str:
    if part.block is None:
        return "graph"
    kind = "softmax" if part.model.dit.softmax_blocks else "gdn"
    return f"graph of block {part.block} ({kind})"


def _checked(where: str, policy: Policy, errors: Mapping[str, float]) -> float:
    """The worst of the errors; raises BuildError naming it if it is too large, or no number."""
    for name, error in errors.items():
        if not error <= LIMIT:
            raise BuildError(
                f"denoiser/{where}, policy {policy.name}: {name} is {error:.1e} away from the fake-quantised model "
                f"(limit {LIMIT:.0e}), so its engines would not compute what was calibrated, and none is built"
            )
    return max(errors.values())
