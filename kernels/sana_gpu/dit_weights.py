"""The transformer's weights as its engines hold them: products that read the same tensor are one, some in FP8."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sana_runtime.errors import ConfigError

E4M3_MAX = 448.0
COLUMNS = 128
"""Products are this many columns wide, or a multiple: tiles of the fastest kernels."""

WIDE = ("q", "k", "v", "output_gate", "beta_proj", "gate_proj")
"""Projections of the self-attention's input; softmax blocks have the first four."""

LINEARS = ("attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj", "mlp.inverted_conv",
           "mlp.point_conv", "mlp.t_conv")  # fmt: skip
"""Products of a block that are alone."""

VECTORS = {
    "attn.q_norm.weight": "attn.q_norm",
    "attn.k_norm.weight": "attn.k_norm",
    "attn.A_log": "attn.a_log",
    "attn.dt_bias": "attn.dt_bias",
    "cross_attn.q_norm.weight": "cross_attn.q_norm",
    "cross_attn.k_norm.weight": "cross_attn.k_norm",
    "scale_shift_table": "scale_shift_table",
}
"""Parameters of a block that stay as they are, in float32."""

PLAIN = ("x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "t_block.1", "y_embedder.fc1", "y_embedder.fc2",
         "final_layer.linear")  # fmt: skip
"""Products outside the blocks, which no policy narrows."""

State = Mapping[str, Tensor]


def prepare_dit(
    config: Mapping[str, Any],
    state: State,
    precision: Mapping[str, str],
    amax: Mapping[str, float],
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Tensor]:
    """Weights of the engines, from the parameters of the model's definition by name; `config` holds its fields.

    Layers that `precision` calls fp8 get E4M3 weights with one scale, and a static scale for their input, whose range
    `amax` gives by module path; all others are in `dtype`. Raises ConfigError for another precision or a missing range.
    """
    for path, name in precision.items():
        if name not in ("fp32", "bf16", "fp8"):
            raise ConfigError(f"layer {path} is to be in {name}, which the torch backend has no kernels for: use fp8")
    weights: dict[str, Tensor] = {}
    for path in PLAIN:
        weights |= _joined(path, [path], state, dtype)
    for name in ("attention_y_norm.weight", "final_layer.scale_shift_table"):
        weights[name] = state[name].float()
    for block in range(config["depth"]):
        weights |= _block(f"blocks.{block}", state, precision, amax, dtype)
    return weights


def _block(
    path: str, state: State, precision: Mapping[str, str], amax: Mapping[str, float], dtype: torch.dtype
) -> dict[str, Tensor]:
    weights = {
        f"{path}.{ours}": state[f"{path}.{theirs}"].float()
        for theirs, ours in VECTORS.items()
        if f"{path}.{theirs}" in state
    }
    present = [name for name in WIDE if f"{path}.attn.{name}.weight" in state]
    narrow = [name for name in present if precision.get(f"{path}.attn.{name}") == "fp8"]
    groups = [[name for name in present if (name in narrow) == fp8] for fp8 in (True, False)]
    joined = [(f"{path}.attn.", group) for group in groups if group]
    alone = [(f"{path}.", [name]) for name in LINEARS]
    for prefix, names in (*joined, *alone):
        members = [prefix + name for name in names]
        product = _joined(prefix + "+".join(names), members, state, dtype)
        is_fp8 = precision.get(members[0]) == "fp8"
        weights |= _narrowed(product, members, amax) if is_fp8 else product
    weights[f"{path}.mlp.depth_conv.weight"] = (
        state[f"{path}.mlp.depth_conv.weight"].flatten(1).T.to(dtype).contiguous()
    )
    weights[f"{path}.mlp.depth_conv.bias"] = state[f"{path}.mlp.depth_conv.bias"].to(dtype)
    return weights


def _joined(name: str, members: Sequence[str], state: State, dtype: torch.dtype) -> dict[str, Tensor]:
    """One product for all members, which read the same tensor."""
    weight = torch.cat([state[f"{member}.weight"] for member in members])
    biases = [state.get(f"{member}.bias") for member in members]
    product = {f"{name}.weight": weight}
    if any(bias is not None for bias in biases):
        rows = [len(state[f"{member}.weight"]) for member in members]
        zeros = weight.new_zeros
        product[f"{name}.bias"] = torch.cat(
            [zeros(count) if bias is None else bias for bias, count in zip(biases, rows, strict=True)]
        )
    if len(members) > 1:
        missing = -len(weight) % COLUMNS
        product = {key: torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for key, x in product.items()}
    return {key: x.to(dtype) for key, x in product.items()}


def _narrowed(product: dict[str, Tensor], members: Sequence[str], amax: Mapping[str, float]) -> dict[str, Tensor]:
    """The product with its weight in E4M3: `scale` is what its codes are multiplied by, `step` its input's."""
    missing = [member for member in members if member not in amax]
    if missing:
        raise ConfigError(f"layer {missing[0]} is to be in fp8 and its input has no range: run `sana-build calibrate`")
    ((name, weight),) = ((key, x) for key, x in product.items() if key.endswith(".weight"))
    scale = fp8_step(float(weight.abs().max()))
    codes = (weight.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    path = name.removesuffix(".weight")
    step = fp8_step(max(amax[member] for member in members))
    scales = {
        f"{path}.{key}": torch.tensor(value, device=weight.device) for key, value in (("scale", scale), ("step", step))
    }
    return product | {name: codes} | scales


def fp8_step(amax: float) -> float:
    """The float32 scale under which `amax` is the largest E4M3 number; 1 where there is nothing to scale."""
    step = amax / E4M3_MAX
    return float(torch.tensor(step)) if step >= torch.finfo(torch.float32).tiny else 1.0


def stored_precisions(weights: State) -> dict[str, str]:
    """Precision of every layer of the ten groups by module path, as the prepared tensors have it."""
    names = {torch.float8_e4m3fn: "fp8", torch.bfloat16: "bf16", torch.float32: "fp32"}
    stored = {path: names[weights[name].dtype] for name in weights for path in _members(name)}
    layers = {f".attn.{name}" for name in WIDE[:3]} | {f".{name}" for name in LINEARS}
    return {path: kind for path, kind in stored.items() if any(path.endswith(layer) for layer in layers)}


def _members(name: str) -> Iterator[str]:
    """Module paths of the products that a weight holds."""
    path, _, kind = name.rpartition(".")
    prefix, _, members = path.rpartition(".")
    if kind == "weight":
        yield from (f"{prefix}.{member}" for member in members.split("+"))
