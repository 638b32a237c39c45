"""The steps of a transformer block around its products as PyTorch operators: Triton on CUDA, the reference on a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from sana_kernels import dit_launcher, naive_dit
from sana_kernels.dit_launcher import Both, new_outputs


def _operator(function: Callable, name: str, mutates: tuple[str, ...] = ()) -> CustomOpDef:
    return torch.library.custom_op(f"sana::{name}", function, mutates_args=mutates, device_types="cuda")


residual_norm = _operator(dit_launcher.run_residual_norm, "residual_norm")
depthwise_glu = _operator(dit_launcher.run_depthwise_glu, "depthwise_glu")
write_window = _operator(dit_launcher.run_write_window, "write_window", ("keys", "values"))
cross_attention = _operator(dit_launcher.run_cross_attention, "cross_attention")
gate_rows = _operator(dit_launcher.run_gate_rows, "gate_rows")
stack_frames = _operator(dit_launcher.run_stack_frames, "stack_frames")


def _computed(result: Tensor, like: Tensor, plain: bool, step: float | None) -> Both:
    """The outputs on a CPU."""
    fp8 = naive_dit.to_fp8(result, step) if step else like.new_empty(0, dtype=torch.float8_e4m3fn)
    return result.to(like.dtype) if plain else like.new_empty(0), fp8


@residual_norm.register_kernel("cpu")
def _(
    x: Tensor, y: Tensor | None, more: Tensor | None, tail: Tensor | None, gate: Tensor | None,
    shift: Tensor | None, scale: Tensor | None, frames: int, keep: bool, plain: bool, step: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    mixed = None if y is None else naive_dit.mix(y, more, tail, frames)
    result = x.float() if mixed is None else naive_dit.residual(x, mixed, gate)
    kept = result.to(x.dtype, copy=True) if keep else x.new_empty(0)
    if shift is not None and scale is not None:
        result = naive_dit.modulated_norm(result, shift, scale)
    return kept, *_computed(result, x, plain, step)


@depthwise_glu.register_kernel("cpu")
def _(wide: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, step: float | None) -> Both:
    return _computed(naive_dit.depthwise_glu(wide, weight, bias, height, width), wide, step is None, step)


@write_window.register_kernel("cpu")
def _(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor,
    keys: Tensor, values: Tensor, start: int,
) -> Tensor:  # fmt: skip
    keys[:, start : start + k.shape[1]] = naive_dit.rotated_heads(k, k_weight, rope)
    values[:, start : start + v.shape[1]] = v
    return naive_dit.rotated_heads(q, q_weight, rope).to(q.dtype)


@cross_attention.register_kernel("cpu")
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, used: Tensor, step: float | None) -> Both:
    return _computed(naive_dit.cross_attention(q, k, v, bias), q, step is None, step)


@gate_rows.register_kernel("cpu")
def _(x: Tensor, gate: Tensor | None, plain: bool, step: float | None, lse: Tensor | None = None) -> Both:
    whole = x.float() if lse is None else naive_dit.joined(x, lse)
    return _computed(whole if gate is None else naive_dit.gated(whole, gate), x, plain, step)


@stack_frames.register_kernel("cpu")
def _(x: Tensor, tail: Tensor | None, frames: int, step: float) -> Tensor:
    return naive_dit.to_fp8(naive_dit.stacked(x, tail, frames), step)


@residual_norm.register_fake
def _(
    x: Tensor, y: Tensor | None, more: Tensor | None, tail: Tensor | None, gate: Tensor | None,
    shift: Tensor | None, scale: Tensor | None, frames: int, keep: bool, plain: bool, step: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape if keep else 0), *new_outputs(x, x.shape, plain, step)


@depthwise_glu.register_fake
def _(wide: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, step: float | None) -> Both:
    return new_outputs(wide, (*wide.shape[:2], wide.shape[2] // 2), step is None, step)


@write_window.register_fake
def _(q: Tensor, *_rest: object) -> Tensor:
    return q.new_empty(q.shape)


@cross_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, used: Tensor, step: float | None) -> Both:
    return new_outputs(q, q.shape, step is None, step)


@gate_rows.register_fake
def _(x: Tensor, gate: Tensor | None, plain: bool, step: float | None, lse: Tensor | None = None) -> Both:
    whole = x if lse is None else x[:1]
    return new_outputs(whole, whole.shape, plain, step)


@stack_frames.register_fake
def _(x: Tensor, tail: Tensor | None, frames: int, step: float) -> Tensor:
    return dit_launcher.new_stack(x)
