"""Names and shapes of the released transformer checkpoints, and their mapping to our modules (spec 2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sana_export.configs import DiTConfig
from sana_export.dit import SINUSOID_WIDTH

Shape = tuple[int, ...]

OPTIONAL = ("pos_embed", "y_embedder.y_embedding")
"""Buffers that are never read and that a file may leave out."""

POSITIONS = 484

RENAMES = (
    ("x_embedder.proj.", "x_embedder."),
    ("y_embedder.y_proj.", "y_embedder."),
    (".mlp.inverted_conv.conv.", ".mlp.inverted_conv."),
    (".mlp.depth_conv.conv.", ".mlp.depth_conv."),
    (".mlp.point_conv.conv.", ".mlp.point_conv."),
)
"""Pieces of released names and of ours; every other name is the same on both sides."""

CENTRE_TAP = 1


def released_shapes(config: DiTConfig) -> dict[str, Shape]:
    """Every tensor of a released file and its shape, the OPTIONAL ones included (spec 2.1, 2.2)."""
    shapes = _outer_shapes(config)
    for index in range(config.depth):
        block = _block_shapes(config) | _attention_shapes(config, index in config.softmax_blocks)
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def from_released(config: DiTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of DiT from released tensors whose names and shapes have been checked."""
    names = [name for name in released_shapes(config) if name not in OPTIONAL]
    return {_ours(name): _import(name, tensors[name]) for name in names}


def to_released(config: DiTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of from_released; what the import drops (side taps, buffers) is written as zeros."""
    some = next(iter(state_dict.values()))
    released = {}
    for name, shape in released_shapes(config).items():
        if name in OPTIONAL:
            released[name] = some.new_zeros(shape)
        else:
            released[name] = _export(name, state_dict[_ours(name)], shape)
    return released


def _ours(name: str) -> str:
    for released, ours in RENAMES:
        name = name.replace(released, ours)
    return name


def _import(name: str, tensor: Tensor) -> Tensor:
    if name.endswith("t_conv.weight"):
        return torch.cat(tensor[..., 0].unbind(-1), dim=1)
    if name.endswith(("attn.q.weight", "attn.k.weight")) and tensor.dim() == 3:
        return tensor[:, :, tensor.shape[2] // 2].contiguous()
    if "depth_conv" in name:
        return tensor
    return tensor.flatten(1) if tensor.dim() > 2 else tensor


def _export(name: str, tensor: Tensor, shape: Shape) -> Tensor:
    if name.endswith("t_conv.weight"):
        return torch.stack(tensor.chunk(shape[2], dim=1), dim=-1).unsqueeze(-1)
    if len(shape) == 3 and shape[2] == 3:
        taps = tensor.new_zeros(shape)
        taps[:, :, CENTRE_TAP] = tensor
        return taps
    return tensor.reshape(shape)


def _outer_shapes(config: DiTConfig) -> dict[str, Shape]:
    hidden, channels = config.hidden, config.latent_channels
    return {
        "pos_embed": (1, POSITIONS, hidden),
        "x_embedder.proj.weight": (hidden, channels + config.source_channels, 1, 1, 1),
        "x_embedder.proj.bias": (hidden,),
        **_linear("t_embedder.mlp.0", hidden, SINUSOID_WIDTH),
        **_linear("t_embedder.mlp.2", hidden, hidden),
        **_linear("t_block.1", 6 * hidden, hidden),
        "y_embedder.y_embedding": (config.text_tokens, config.caption_width),
        **_linear("y_embedder.y_proj.fc1", hidden, config.caption_width),
        **_linear("y_embedder.y_proj.fc2", hidden, hidden),
        "attention_y_norm.weight": (hidden,),
        "final_layer.scale_shift_table": (2, hidden),
        **_linear("final_layer.linear", channels, hidden),
    }


def _block_shapes(config: DiTConfig) -> dict[str, Shape]:
    hidden, width = config.hidden, config.ffn_width
    norms = ("attn.q_norm", "attn.k_norm", "cross_attn.q_norm", "cross_attn.k_norm")
    return {
        "scale_shift_table": (6, hidden),
        **{f"{norm}.weight": (hidden,) for norm in norms},
        "attn.v.weight": (hidden, hidden),
        **_linear("attn.proj", hidden, hidden),
        **_linear("attn.output_gate", hidden, hidden),
        **_linear("cross_attn.q_linear", hidden, hidden),
        **_linear("cross_attn.kv_linear", 2 * hidden, hidden),
        **_linear("cross_attn.proj", hidden, hidden),
        "mlp.inverted_conv.conv.weight": (2 * width, hidden, 1, 1),
        "mlp.inverted_conv.conv.bias": (2 * width,),
        "mlp.depth_conv.conv.weight": (2 * width, 1, 3, 3),
        "mlp.depth_conv.conv.bias": (2 * width,),
        "mlp.point_conv.conv.weight": (hidden, width, 1, 1),
        "mlp.t_conv.weight": (hidden, hidden, 3, 1),
    }


def _attention_shapes(config: DiTConfig, softmax: bool) -> dict[str, Shape]:
    hidden, heads = config.hidden, config.heads
    if softmax:
        square: Shape = (hidden, hidden, 3) if config.streaming else (hidden, hidden)
        return {"attn.q.weight": square, "attn.k.weight": square}
    return {
        "attn.q.weight": (hidden, hidden, 1),
        "attn.k.weight": (hidden, hidden, 1),
        **_linear("attn.beta_proj", heads, hidden),
        **_linear("attn.gate_proj", heads, hidden),
        "attn.A_log": (heads,),
        "attn.dt_bias": (heads,),
    }


def _linear(name: str, outputs: int, inputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
