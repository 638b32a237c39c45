"""The layers of the transformer whose precision is a choice, in the paper's ten groups (spec 10)."""

from dataclasses import dataclass

GROUPS = {
    "SA-Q": "attn.q",
    "SA-K": "attn.k",
    "SA-V": "attn.v",
    "SA-O": "attn.proj",
    "CA-Q": "cross_attn.q_linear",
    "CA-KV": "cross_attn.kv_linear",
    "CA-O": "cross_attn.proj",
    "FFN-Input": "mlp.inverted_conv",
    "FFN-Output": "mlp.point_conv",
    "FFN-Temporal": "mlp.t_conv",
}
"""Name of each group, and the module it is in every block."""

PROMPT_GROUPS = ("CA-KV",)
"""Groups that depend on the prompt alone: they are in the graph that runs once per prompt."""

CHUNK_GROUPS = tuple(group for group in GROUPS if group not in PROMPT_GROUPS)
"""All others: in the graphs that run for every chunk."""

HIGH_PRECISION = (
    "x_embedder",
    "t_embedder",
    "t_block",
    "y_embedder",
    "final_layer",
    "attn.output_gate",
    "attn.beta_proj",
    "attn.gate_proj",
    "mlp.depth_conv",
)
"""Modules with weights that no policy lowers. The paper does not name y_embedder, which runs once per prompt."""

SHALLOW_SHARE = 0.3


@dataclass(frozen=True)
class Layer:
    """One layer of a group: `path` is its module in the transformer, and the name of its node in every graph."""

    path: str
    group: str
    block: int


def layers(depth: int) -> list[Layer]:
    """Every layer of the groups in `depth` blocks."""
    return [
        Layer(f"blocks.{block}.{module}", group, block) for block in range(depth) for group, module in GROUPS.items()
    ]


def block_ranges(depth: int) -> dict[str, range]:
    """The named ranges of `depth` blocks: 30, 40 and 30 %, which is 0-5, 6-13 and 14-19 for the 20 of the paper."""
    edge = round(SHALLOW_SHARE * depth)
    return {"shallow": range(edge), "middle": range(edge, depth - edge), "deep": range(depth - edge, depth)}
