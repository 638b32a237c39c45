"""The gated delta network as PyTorch operators: Triton kernels on CUDA, the readable reference on a CPU.

torch.ops.sana.gdn and torch.ops.sana.gdn_layer_core have fake kernels: torch.export and torch.compile carry them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_kernels import naive, naive_layer
from sana_kernels.launcher import architecture, launch
from sana_kernels.naive_dit import to_fp8
from sana_kernels.operands import gdn_problem, layer_problem
from sana_kernels.problem import Problem

Result = tuple[Tensor, Tensor, Tensor]
"""The output, and the state after the last frame: kv (B, h, dv, dk) and z (B, h, dk) in float32."""


def run_gdn(
    q: Tensor, k: Tensor, v: Tensor, q_rot: Tensor, k_rot: Tensor, beta: Tensor, decay: Tensor,
    state_kv: Tensor | None, state_z: Tensor | None, precision: str = "bf16",
) -> Result:  # fmt: skip
    """naive.gdn on the kernels; `precision` (fp32, tf32, bf16) is that of the operands of products, sums are float32.

    q, k, q_rot, k_rot (B, h, T, S, dk), v (B, h, T, S, dv) and beta (B, h, T, S) in one floating type; decay (B, h, T),
    state_kv (B, h, dv, dk) and state_z (B, h, dk) in float32; all contiguous. Raises KernelError for anything else. No
    beta may be negative: the kernels take its square root.
    """
    tensors = _present(locals())
    return _run(gdn_problem("gdn", tensors, precision), tensors, torch.empty_like(v))


def run_gdn_layer_core(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, rate: Tensor,
    q_weight: Tensor, k_weight: Tensor, rate_bias: Tensor, a_log: Tensor, rope: Tensor,
    state_kv: Tensor | None, state_z: Tensor | None, frames: int, precision: str = "bf16", factor: Tensor | None = None,
) -> Result:  # fmt: skip
    """naive_layer.gdn_layer_core on the kernels, with `precision` as in run_gdn, or better where tokens are summed.

    q, k, v, gate (B, N, C) and beta, rate (B, N, h) in one floating type, each columns of some contiguous (B, N, ...);
    weights and rope in any floating type, contiguous; the state in float32. With a `factor` (1,) float32, the output is
    E4M3 of that many times the result. In tf32 and fp32 a k_weight beyond 900 may leave the range of what is summed.
    Raises KernelError for anything else.
    """
    tensors = _present(locals())
    return _run(layer_problem("gdn_layer_core", tensors, frames, precision), tensors, _new_output(q, factor))


def _present(arguments: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def _run(p: Problem, tensors: dict[str, Tensor], out: Tensor) -> Result:
    results = out, *_new_state(out, (p.batch, p.heads), p.value_dim, p.key_dim)
    launch(p, {**tensors, **dict(zip(("out", "final_kv", "final_z"), results, strict=True))}, architecture(out.device))
    return results


def _new_output(q: Tensor, factor: Tensor | None) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype if factor is None else torch.float8_e4m3fn, device=q.device)


def _new_state(like: Tensor, streams: Sequence[int], values: int, keys: int) -> tuple[Tensor, Tensor]:
    kv = like.new_empty(*streams, values, keys, dtype=torch.float32)
    return kv, kv.new_empty(*streams, keys)


def _state(kv: Tensor | None, z: Tensor | None) -> naive.State | None:
    return None if kv is None or z is None else naive.State(kv, z)


gdn = torch.library.custom_op("sana::gdn", run_gdn, mutates_args=(), device_types="cuda")
gdn_layer_core = torch.library.custom_op(
    "sana::gdn_layer_core", run_gdn_layer_core, mutates_args=(), device_types="cuda"
)


@gdn.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_rest: object) -> Result:
    return torch.empty_like(v), *_new_state(v, v.shape[:2], v.shape[-1], k.shape[-1])


@gdn_layer_core.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, rate: Tensor,
    q_weight: Tensor, k_weight: Tensor, rate_bias: Tensor, a_log: Tensor, rope: Tensor,
    state_kv: Tensor | None, state_z: Tensor | None, frames: int, precision: str = "bf16", factor: Tensor | None = None,
) -> Result:  # fmt: skip
    heads = beta.shape[-1]
    width = q.shape[-1] // heads
    return _new_output(q, factor), *_new_state(q, (q.shape[0], heads), width, width)


@gdn.register_kernel("cpu")
def _(
    q: Tensor, k: Tensor, v: Tensor, q_rot: Tensor, k_rot: Tensor, beta: Tensor, decay: Tensor,
    state_kv: Tensor | None, state_z: Tensor | None, precision: str = "bf16",
) -> Result:  # fmt: skip
    state = _state(state_kv, state_z)
    out, after = naive.gdn(q.float(), k.float(), v.float(), q_rot.float(), k_rot.float(), beta.float(), decay, state)
    return out.to(v.dtype), *after


@gdn_layer_core.register_kernel("cpu")
def _(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, rate: Tensor,
    q_weight: Tensor, k_weight: Tensor, rate_bias: Tensor, a_log: Tensor, rope: Tensor,
    state_kv: Tensor | None, state_z: Tensor | None, frames: int, precision: str = "bf16", factor: Tensor | None = None,
) -> Result:  # fmt: skip
    per_channel = q_weight, k_weight, rate_bias, a_log
    state = _state(state_kv, state_z)
    out, after = naive_layer.gdn_layer_core(q, k, v, gate, beta, rate, *per_channel, rope, state, frames)
    return (out if factor is None else to_fp8(out, 1 / float(factor))), *after
