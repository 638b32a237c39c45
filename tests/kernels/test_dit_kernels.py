"""The kernels around the gated delta network against the readable reference, on ragged sizes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gdn_cases import off
from torch import Tensor

from sana_kernels import dit_launcher, naive_dit
from sana_kernels.dit_launcher import (
    run_cross_attention,
    run_depthwise_glu,
    run_gate_rows,
    run_residual_norm,
    run_stack_frames,
    run_write_window,
)
from sana_kernels.errors import KernelError

EXACT, ROUNDED = 3e-6, 4e-3
"""Of float32 in any order of sums, and of results rounded to bfloat16, which alone costs 1.7e-3."""
E4M3_ROUNDING = 0.04
STEP = 0.02

KINDS = {"fp32": (torch.float32, EXACT), "bf16": (torch.bfloat16, ROUNDED)}


class Source:
    """Random tensors on one device, the same for the same seed."""

    def __init__(self, device: torch.device, kind: torch.dtype, seed: int = 0) -> None:
        self.device, self.kind = device, kind
        self.generator = torch.Generator().manual_seed(seed)

    def tokens(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.generator).to(self.device, self.kind)

    def vector(self, *sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=self.generator).to(self.device)


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, device: torch.device) -> tuple[Source, float]:
    kind, limit = KINDS[request.param]
    return Source(device, kind), limit


def cpu(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.cpu() for tensor in tensors]


def assert_e4m3(fp8: Tensor, wanted: Tensor) -> None:
    assert fp8.dtype == torch.float8_e4m3fn
    assert off(fp8.float() * STEP, wanted.clamp(-448 * STEP, 448 * STEP)) < E4M3_ROUNDING


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 7, 48), (1, 9, 130)], ids=str)
def test_residual_and_norm(shape: tuple[int, ...], gated: bool, source: tuple[Source, float]) -> None:
    draw, limit = source
    x, y = draw.tokens(*shape), draw.tokens(*shape)
    gate, shift, scale = (draw.vector(shape[-1]) for _ in range(3))
    used = gate if gated else None
    kept, plain, fp8 = run_residual_norm(x, y, None, None, used, shift, scale, 1, True, True, STEP)
    wanted = naive_dit.residual(*cpu(x, y, used))
    assert off(kept, wanted) < limit
    assert off(plain, naive_dit.modulated_norm(wanted, *cpu(shift, scale))) < limit
    assert_e4m3(fp8.cpu(), naive_dit.modulated_norm(wanted, *cpu(shift, scale)))


@pytest.mark.parametrize(("more", "tailed"), [(True, False), (True, True), (False, True)])
@pytest.mark.parametrize(("batch", "frames", "tokens"), [(1, 1, 3), (2, 3, 5), (1, 5, 2)])
def test_temporal_mix(
    batch: int, frames: int, tokens: int, more: bool, tailed: bool, source: tuple[Source, float]
) -> None:
    draw, limit = source
    shape = batch, frames * tokens, 24
    x, point = draw.tokens(*shape), draw.tokens(*shape)
    added = draw.tokens(*shape) if more else None
    tail = draw.tokens(batch, tokens, 24) if tailed else None
    gate = draw.vector(24)
    kept, plain, fp8 = run_residual_norm(x, point, added, tail, gate, None, None, frames, True, False, None)
    mixed = naive_dit.mix(*cpu(point, added, tail), frames)
    assert off(kept, naive_dit.residual(x.cpu(), mixed, gate.cpu())) < limit
    assert plain.numel() == fp8.numel() == 0


@pytest.mark.parametrize("tailed", [False, True])
@pytest.mark.parametrize(("batch", "frames", "tokens"), [(1, 1, 3), (2, 3, 5), (1, 5, 2)])
def test_frames_are_stacked(batch: int, frames: int, tokens: int, tailed: bool, source: tuple[Source, float]) -> None:
    draw, _ = source
    x = draw.tokens(batch, frames * tokens, 24)
    tail = draw.tokens(batch, tokens, 24) if tailed else None
    wanted = naive_dit.to_fp8(naive_dit.stacked(*cpu(x, tail), frames), STEP).float()
    assert torch.equal(run_stack_frames(x, tail, frames, STEP).cpu().float(), wanted)


def test_a_norm_alone_keeps_nothing(source: tuple[Source, float]) -> None:
    draw, limit = source
    x, shift, scale = draw.tokens(2, 5, 24), draw.vector(24), draw.vector(24)
    kept, plain, _ = run_residual_norm(x, None, None, None, None, shift, scale, 1, False, True, None)
    assert kept.numel() == 0
    assert off(plain, naive_dit.modulated_norm(*cpu(x, shift, scale))) < limit


@pytest.mark.parametrize(("frames", "height", "width", "channels"), [(1, 1, 1, 16), (2, 3, 4, 24), (1, 4, 3, 130)])
def test_depthwise_and_gate(
    frames: int, height: int, width: int, channels: int, source: tuple[Source, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = replace(dit_launcher.LAUNCH, depthwise_rows=2, depthwise_columns=3)
    monkeypatch.setattr(dit_launcher, "LAUNCH", tiles)
    draw, limit = source
    wide = draw.tokens(1, frames * height * width, 2 * channels)
    weight, bias = draw.tokens(9, 2 * channels), draw.tokens(2 * channels)
    wanted = naive_dit.depthwise_glu(*cpu(wide, weight, bias), height, width)
    # On a GPU, SiLU is computed to 2^-11.
    assert off(run_depthwise_glu(wide, weight, bias, height, width, None)[0], wanted) < max(limit, 2e-3 * wide.is_cuda)
    assert_e4m3(run_depthwise_glu(wide, weight, bias, height, width, STEP)[1].cpu(), wanted)


@pytest.mark.parametrize(("batch", "tokens", "heads", "head"), [(1, 5, 2, 16), (2, 3, 3, 12)])
def test_window(batch: int, tokens: int, heads: int, head: int, source: tuple[Source, float]) -> None:
    draw, limit = source
    width, start = heads * head, 4
    q, k, v, _ = draw.tokens(batch, tokens, 4 * width).chunk(4, dim=-1)
    weights = 1 + 0.1 * draw.vector(2, width)
    rope = draw.vector(batch, tokens, head)
    keys, values = draw.tokens(batch, 20, width), draw.tokens(batch, 20, width)
    before = keys.clone(), values.clone()
    own = slice(start, start + tokens)
    found = run_write_window(q, k, v, weights[0], weights[1], rope, keys, values, start)
    assert off(found, naive_dit.rotated_heads(*cpu(q, weights[0], rope))) < limit
    assert off(keys[:, own], naive_dit.rotated_heads(*cpu(k, weights[1], rope))) < limit
    assert torch.equal(values[:, own], v)
    for now, then in zip((keys, values), before, strict=True):
        now[:, own] = then[:, own]
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "head", "keys"), [(1, 3, 2, 16, 5), (2, 130, 2, 28, 70), (1, 20, 1, 112, 300)]
)
def test_cross_attention(
    batch: int, tokens: int, heads: int, head: int, keys: int, source: tuple[Source, float]
) -> None:
    draw, limit = source
    q = draw.tokens(batch, tokens, heads * head)
    k, v = draw.tokens(batch, heads, keys, head), draw.tokens(batch, heads, keys, head)
    bias = torch.zeros(batch, keys, device=q.device)
    bias[:, keys - 2 :] = -10000.0
    wanted = naive_dit.cross_attention(*cpu(q, k, v, bias))
    for used in (keys, keys - 2):
        counts = torch.full((batch,), used, dtype=torch.int32, device=q.device)
        assert off(run_cross_attention(q, k, v, bias, counts, None)[0], wanted) < 1.5 * limit
        assert_e4m3(run_cross_attention(q, k, v, bias, counts, STEP)[1].cpu(), wanted)


def test_keys_behind_those_in_use_are_not_read(device: torch.device) -> None:
    draw = Source(device, torch.float32)
    q, (k, v) = draw.tokens(2, 5, 32), draw.tokens(2, 2, 2, 70, 16)
    used = torch.tensor([3, 70], dtype=torch.int32, device=device)
    bias = torch.where(torch.arange(70, device=device) < used[:, None], 0.0, -10000.0)
    wanted = naive_dit.cross_attention(*cpu(q, k, v, bias))
    k[0, :, 64:], v[0, :, 64:] = float("nan"), float("nan")
    assert off(run_cross_attention(q, k, v, bias, used, None)[0], wanted) < EXACT


def test_gates(source: tuple[Source, float]) -> None:
    draw, limit = source
    x, (_, gate) = draw.tokens(2, 5, 40), draw.tokens(2, 5, 80).chunk(2, dim=-1)
    wanted = naive_dit.gated(*cpu(x, gate))
    plain, fp8 = run_gate_rows(x, gate, True, STEP)
    assert off(plain, wanted) < limit
    assert_e4m3(fp8.cpu(), wanted)
    assert_e4m3(run_gate_rows(x, None, False, STEP)[1].cpu(), x.cpu().float())


@pytest.mark.parametrize("parts", [1, 3])
def test_shares_of_keys_are_joined(parts: int, source: tuple[Source, float]) -> None:
    draw, limit = source
    x, gate, lse = draw.tokens(parts, 5, 24), draw.tokens(1, 5, 24), 3 * draw.vector(parts, 2, 5)
    wanted = naive_dit.gated(naive_dit.joined(*cpu(x, lse)), gate.cpu())
    assert off(run_gate_rows(x, gate, True, None, lse)[0], wanted) < limit


def test_e4m3_saturates(device: torch.device) -> None:
    x = torch.tensor([1e4, -1e4, 1.0] + [0.0] * 13, device=device)[None, None]
    assert run_gate_rows(x, None, False, 1.0)[1].float().tolist()[0][0][:3] == [448.0, -448.0, 1.0]


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "width": (
        lambda: run_residual_norm(
            torch.zeros(1, 4, 8), torch.zeros(1, 4, 6), None, None, None, None, None, 1, True, False, None
        ),
        r"residual_norm: y has shape \(1, 4, 6\), expected 8 channels",
    ),
    "frames": (
        lambda: run_residual_norm(torch.zeros(1, 4, 8), None, None, None, None, None, None, 3, True, False, None),
        "residual_norm: x has 4 tokens, which are not 3 equal frames",
    ),
    "tail": (
        lambda: run_residual_norm(
            *torch.zeros(2, 1, 4, 8), None, torch.zeros(1, 3, 8), None, None, None, 2, True, False, None
        ),
        "residual_norm: tail has 3 tokens, a frame of x has 2",
    ),
    "stack": (
        lambda: run_stack_frames(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), 2, 0.1),
        "stack_frames: tail has 4 tokens, a frame of x has 2",
    ),
    "images": (
        lambda: run_depthwise_glu(torch.zeros(1, 7, 8), torch.zeros(9, 8), torch.zeros(8), 2, 3, None),
        "depthwise_glu: wide has 7 tokens, which are not frames of 2 x 3",
    ),
    "window": (
        lambda: run_write_window(
            *torch.zeros(3, 1, 4, 8), *torch.zeros(2, 8), torch.zeros(1, 4, 4), *torch.zeros(2, 1, 6, 8), 3
        ),
        "write_window: keys has 6 rows, the chunk needs 7",
    ),
    "prompt": (
        lambda: run_cross_attention(
            torch.zeros(1, 4, 8), *torch.zeros(2, 1, 2, 5, 4), torch.zeros(1, 6), torch.zeros(1), None
        ),
        r"cross_attention: bias has shape \(1, 6\), expected 5 tokens per frame",
    ),
    "shares": (
        lambda: run_gate_rows(torch.zeros(2, 4, 8), None, True, None, torch.zeros(2, 2, 5)),
        r"gate_rows: lse has shape \(2, 2, 5\), expected the parts, heads and tokens of x",
    ),
    "gate": (
        lambda: run_gate_rows(torch.zeros(1, 8, 4).mT, None, True, None),
        "gate_rows: x has strides .*, make it contiguous",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        call()
