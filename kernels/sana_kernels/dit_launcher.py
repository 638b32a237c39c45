"""The steps of a transformer block around its products, on Triton kernels.

What a step writes for a product comes in the type of x (`plain`), in E4M3 with a static step, or both: an output that
was not asked for is empty.
"""

from typing import Any

import torch
from torch import Tensor

from sana_kernels import naive_dit
from sana_kernels.checks import check_contiguous, check_shapes, row_stride
from sana_kernels.dit_launch import LAUNCH
from sana_kernels.dit_shapes import CrossShape, ImageShape, RowShape
from sana_kernels.errors import KernelError
from sana_kernels.launcher import architecture, interpreted, start
from sana_kernels.problem import padded

Both = tuple[Tensor, Tensor]
"""What a product reads: in the type of x, and in E4M3."""


def new_outputs(like: Tensor, shape: tuple[int, ...], plain: bool, step: float | None) -> Both:
    fp8 = like.new_empty(shape if step else 0, dtype=torch.float8_e4m3fn)
    return like.new_empty(shape if plain else 0), fp8


def _targets(outputs: Both, step: float | None) -> dict[str, Any]:
    """The outputs as a kernel takes them."""
    plain, fp8 = (x if x.numel() else None for x in outputs)
    return {"plain": plain, "fp8": fp8, "factor": 1.0 / step if step else 1.0}


def _launch(kernel: Any, grid: tuple[int, ...], like: Tensor, warps: int, stages: int = 1, **arguments: Any) -> None:
    architecture(like.device)
    with torch.cuda.device_of(like):
        start(kernel, grid, **arguments, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def _limit(registers: int) -> dict[str, Any]:
    return {"maxnreg": registers} if registers else {}


def _rows(op: str, x: Tensor, frames: int = 1, head: int = 0) -> RowShape:
    batch, tokens, width = x.shape
    if tokens % frames:
        raise KernelError(f"{op}: x has {tokens} tokens, which are not {frames} equal frames")
    return RowShape(batch * tokens, width, frames, tokens // frames, head or width)


def run_residual_norm(
    x: Tensor, y: Tensor | None, more: Tensor | None, tail: Tensor | None, gate: Tensor | None,
    shift: Tensor | None, scale: Tensor | None, frames: int, keep: bool, plain: bool, step: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """r = x + gate * y, and modulated_norm(r, shift, scale), r itself without a shift.

    More is added to y, and to the first of `frames` frames the tail. x, y, more (B, N, C), tail (B, S, C) and gate,
    shift, scale (C,), all contiguous. Returns r if it is to be kept, and the rest as plain and fp8.
    """
    op = "residual_norm"
    given: dict[str, Any] = {name: t for name, t in locals().items() if isinstance(t, Tensor)}
    layouts = {"x": "bnc", "y": "bnc", "more": "bnc", "tail": "bsc", "gate": "c", "shift": "c", "scale": "c"}
    check_shapes(op, given, {name: letters for name, letters in layouts.items() if name in given})
    check_contiguous(op, given, given)
    p = _rows(op, x, frames)
    _check_tail(op, tail, p)
    kept, outputs = x.new_empty(x.shape if keep else 0), new_outputs(x, x.shape, plain, step)
    from sana_kernels.rows import residual_norm

    absent: dict[str, Any] = dict.fromkeys(("y", "more", "tail", "gate", "shift", "scale"))
    _launch(
        residual_norm, (-(-p.rows // LAUNCH.norm_rows),), x, LAUNCH.norm_warps,
        **absent | given, **_targets(outputs, step), x_out=kept if keep else None,
        epsilon=naive_dit.LAYER_NORM_EPSILON, p=p, ROWS=LAUNCH.norm_rows,
    )  # fmt: skip
    return kept, *outputs


def _check_tail(op: str, tail: Tensor | None, p: RowShape) -> None:
    if tail is not None and tail.shape[1] != p.tokens:
        raise KernelError(f"{op}: tail has {tail.shape[1]} tokens, a frame of x has {p.tokens}")


def new_stack(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], 3 * x.shape[2], dtype=torch.float8_e4m3fn)


def run_stack_frames(x: Tensor, tail: Tensor | None, frames: int, step: float) -> Tensor:
    """naive_dit.stacked of x (B, N, C) and tail (B, S, C), all contiguous, in E4M3: (B, N, 3 C)."""
    op = "stack_frames"
    given: dict[str, Any] = {"x": x} | ({} if tail is None else {"tail": tail})
    check_shapes(op, given, {name: {"x": "bnc", "tail": "bsc"}[name] for name in given})
    check_contiguous(op, given, given)
    p, out = _rows(op, x, frames), new_stack(x)
    _check_tail(op, tail, p)
    from sana_kernels.rows import stack_frames

    _launch(stack_frames, (p.rows,), x, LAUNCH.row_warps, x=x, tail=tail, out=out, factor=1.0 / step, p=p)
    return out


def run_depthwise_glu(wide: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, step: float | None) -> Both:
    """naive_dit.depthwise_glu on frames of height x width tokens, plain or, with a step, in E4M3.

    wide (B, N, 2 F), weight (9, 2 F), bias (2 F,), all contiguous.
    """
    op = "depthwise_glu"
    tensors: dict[str, Any] = {"wide": wide, "weight": weight, "bias": bias}
    check_contiguous(op, tensors, tensors)
    rows, channels = wide.shape[0] * wide.shape[1], wide.shape[2] // 2
    if wide.shape[1] % (height * width):
        raise KernelError(f"{op}: wide has {wide.shape[1]} tokens, which are not frames of {height} x {width}")
    outputs = new_outputs(wide, (*wide.shape[:2], channels), step is None, step)
    from sana_kernels.depthwise import depthwise_glu

    down, across = -(-height // LAUNCH.depthwise_rows), -(-width // LAUNCH.depthwise_columns)
    grid = rows // (height * width) * down * across, -(-channels // LAUNCH.depthwise_channels)
    _launch(
        depthwise_glu, grid, wide, LAUNCH.depthwise_warps, **tensors, **_targets(outputs, step),
        p=ImageShape(height, width, channels), ROWS=LAUNCH.depthwise_rows, COLUMNS=LAUNCH.depthwise_columns,
        CHANNELS=LAUNCH.depthwise_channels, STAGES=LAUNCH.depthwise_stages,
        FAST=wide.dtype == torch.bfloat16 and not interpreted(),
    )  # fmt: skip
    return outputs


def run_write_window(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, k_weight: Tensor, rope: Tensor,
    keys: Tensor, values: Tensor, start: int,
) -> Tensor:  # fmt: skip
    """Normed and rotated queries (B, N, C); keys and values go to rows from `start` of keys, values (B, W, C).

    q, k, v (B, N, C), each columns of some contiguous (B, N, ...); rope (B, N, d); q_weight, k_weight (C,).
    """
    op = "write_window"
    given: dict[str, Any] = {name: t for name, t in locals().items() if isinstance(t, Tensor)}
    layouts = {"q": "bnc", "k": "bnc", "v": "bnc", "q_weight": "c", "k_weight": "c", "rope": "bnk"}
    check_shapes(op, given, layouts)
    check_contiguous(op, given, ("rope", "keys", "values", "q_weight", "k_weight"))
    if start + q.shape[1] > keys.shape[1]:
        raise KernelError(f"{op}: keys has {keys.shape[1]} rows, the chunk needs {start + q.shape[1]}")
    strides = tuple(row_stride(op, name, given[name]) for name in "qkv")
    p, q_out = _rows(op, q, head=rope.shape[-1]), q.new_empty(q.shape)
    from sana_kernels.rows import write_window

    _launch(
        write_window, (p.rows,), q, LAUNCH.row_warps, **given, q_out=q_out, start=start,
        epsilon=naive_dit.QK_EPSILON, p=p, ROW=strides, WINDOW=keys.shape[1],
    )  # fmt: skip
    return q_out


def run_cross_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, used: Tensor, step: float | None) -> Both:
    """naive_dit.cross_attention, plain or, with a step, in E4M3. q (B, N, C), k, v (B, h, L, d), bias (B, L).

    Keys from used (B,), int32, on are not read: bias must exclude them.
    """
    op = "cross_attention"
    tensors: dict[str, Any] = {"q": q, "k": k, "v": v, "bias": bias, "used": used}
    size = check_shapes(op, tensors, {"k": "bhsk", "v": "bhsk", "bias": "bs", "used": "b", "q": "bnc"})
    check_contiguous(op, tensors, tensors)
    p = CrossShape(size["h"], size["k"], size["n"], size["s"])
    outputs, inverse = new_outputs(q, q.shape, step is None, step), q.new_empty(q.shape[:2], dtype=torch.float32)
    from sana_kernels.cross import cross_attention
    from sana_kernels.rows import inverse_row_rms

    rows, epsilon = _rows(op, q), naive_dit.CROSS_EPSILON
    _launch(inverse_row_rms, (rows.rows,), q, LAUNCH.row_warps, x=q, inverse=inverse, p=rows, epsilon=epsilon)
    _launch(
        cross_attention, (-(-p.tokens // LAUNCH.cross_queries), p.heads, size["b"]), q, LAUNCH.cross_warps,
        LAUNCH.cross_stages, **tensors, inverse=inverse, **_targets(outputs, step),
        p=p, QUERIES=LAUNCH.cross_queries, KEYS=LAUNCH.cross_keys, **_limit(LAUNCH.cross_registers),
    )  # fmt: skip
    return outputs


def run_gate_rows(x: Tensor, gate: Tensor | None, plain: bool, step: float | None, lse: Tensor | None = None) -> Both:
    """x (B, N, C) * silu(gate), x alone without a gate; gate is columns of a contiguous (B, N, ...).

    With lse (P, h, N) float32, x (P, N, C) is attention of one stream to P shares of its keys and is joined first, by
    the logarithms of the sums of exponentials of its scores; the rest is then of B = 1.
    """
    op, tensors = "gate_rows", {"x": x} | ({} if lse is None else {"lse": lse})
    check_contiguous(op, tensors, tensors)
    parts, heads = (1, 1) if lse is None else lse.shape[:2]
    if lse is not None and (lse.shape[0], lse.shape[2]) != x.shape[:2]:
        raise KernelError(f"{op}: lse has shape {tuple(lse.shape)}, expected the parts, heads and tokens of x")
    first = x if lse is None else x[:1]
    p, outputs = _rows(op, first, head=x.shape[2] // heads), new_outputs(first, first.shape, plain, step)
    stride = 0 if gate is None else row_stride(op, "gate", gate)
    from sana_kernels.rows import gate_rows

    _launch(
        gate_rows, (p.rows,), x, LAUNCH.row_warps, x=x, lse=lse, gate=gate, **_targets(outputs, step),
        p=p, ROW=stride, PARTS=parts, HEADS=padded(heads), HEAD=padded(p.head),
    )  # fmt: skip
    return outputs
