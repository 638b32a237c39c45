"""Single transformer blocks of a model, each as a model of its own: what is built and compared at production width."""

from dataclasses import replace

from sana_export.configs import ModelConfig
from sana_runtime.errors import choose

BLOCKS = {"gdn": 0.0, "softmax": 1.0}
"""Kind of block, and the share of softmax blocks with which a transformer of one block is of that kind."""


def single_block(model: ModelConfig, kind: str) -> ModelConfig:
    """`model` with one transformer block of `kind`; its path is `blocks.0`. Raises ConfigError for another kind."""
    ratio = choose("block", kind, BLOCKS)
    dit = replace(model.dit, depth=1, softmax_ratio=ratio)
    return replace(model, name=f"{model.name}-{kind}", dit=dit)
