"""The fused Triton kernels on raw projections against the reference in float64, and the two laws of streaming."""

import pytest
import torch
from gdn_cases import LIMITS, carried, off, projections
from torch import Tensor

from sana_kernels import launcher, naive_layer
from sana_kernels.naive import State
from sana_kernels.ops import run_gdn_layer_core
from sana_kernels.problem import Problem

SHAPES = {
    # batch, heads, frames, tokens, head width
    "one frame": (1, 2, 1, 24, 16),
    "one token": (1, 2, 3, 1, 16),
    "ragged": (2, 2, 2, 19, 28),
    "head of the model": (1, 1, 2, 40, 112),
    "longest chunk": (1, 1, 11, 6, 16),
}

TOKENS = ("q", "k", "v", "gate", "beta", "rate")


def run(tensors: dict[str, Tensor], state: State | None, frames: int, precision: str, device: torch.device) -> list:
    placed = {name: x.float().to(device) for name, x in tensors.items()}
    kv, z = (None, None) if state is None else (x.float().to(device) for x in state)
    return list(run_gdn_layer_core(**placed, state_kv=kv, state_z=z, frames=frames, precision=precision))


def case(name: str) -> tuple[dict[str, Tensor], State, int]:
    batch, heads, frames, tokens, width = SHAPES[name]
    state = carried((batch, heads, frames, tokens, width, width))
    return projections(batch, heads, frames, tokens, width), state, frames


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: str, precision: str, device: torch.device) -> None:
    tensors, state, frames = case(shape)
    out, after = naive_layer.gdn_layer_core(**tensors, state=state, frames=frames)
    for got, wanted in zip(run(tensors, state, frames, precision, device), (out, *after), strict=True):
        assert off(got, wanted) < LIMITS[precision]


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_projections_lose_less_than_twice_their_own_rounding(shape: str, device: torch.device) -> None:
    tensors, state, frames = case(shape)
    out, after = naive_layer.gdn_layer_core(**tensors, state=state, frames=frames)
    rounded = {name: x.bfloat16() if name in TOKENS else x.float() for name, x in tensors.items()}
    state = State(state.kv.float(), state.z.float())
    lost, lost_after = naive_layer.gdn_layer_core(**rounded, state=state, frames=frames)
    placed = {name: x.to(device) for name, x in rounded.items()}
    placed |= {"state_kv": state.kv.to(device), "state_z": state.z.to(device)}
    results = run_gdn_layer_core(**placed, frames=frames, precision="bf16")
    for got, reference, wanted in zip(results, (lost, *lost_after), (out, *after), strict=True):
        print(off(got, wanted), off(reference, wanted))
        assert off(got, wanted) < 2 * off(reference, wanted)


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_projections_leave_as_exact_a_state(shape: str, precision: str, device: torch.device) -> None:
    tensors, state, frames = case(shape)
    rounded = {name: x.bfloat16().double() if name in TOKENS else x.float().double() for name, x in tensors.items()}
    state = State(state.kv.float().double(), state.z.float().double())
    out, after = naive_layer.gdn_layer_core(**rounded, state=state, frames=frames)
    placed = {name: x.to(device, torch.bfloat16 if name in TOKENS else torch.float32) for name, x in rounded.items()}
    placed |= {"state_kv": state.kv.float().to(device), "state_z": state.z.float().to(device)}
    got, *got_after = run_gdn_layer_core(**placed, frames=frames, precision=precision)
    assert off(got, out) < LIMITS[precision] + 2**-8
    for part, wanted in zip(got_after, after, strict=True):
        assert off(part, wanted) < LIMITS[precision]


@pytest.mark.parametrize("precision", LIMITS)
def test_large_keys_fit_the_range_of_their_pieces(precision: str, device: torch.device) -> None:
    tensors, state, frames = case("head of the model")
    # All of a row in one channel is as large as a normed key can be.
    tensors["k"][..., 0] = 1e4
    tensors["k_weight"] *= 100
    out, after = naive_layer.gdn_layer_core(**tensors, state=state, frames=frames)
    for got, wanted in zip(run(tensors, state, frames, precision, device), (out, *after), strict=True):
        assert off(got, wanted) < 1e-2


def test_every_row_of_a_batch_can_stand_at_its_own_time(device: torch.device) -> None:
    tensors, state, frames = case("ragged")
    tensors["rope"] = torch.stack([tensors["rope"], tensors["rope"].flip(0)])
    out, after = naive_layer.gdn_layer_core(**tensors, state=state, frames=frames)
    for got, wanted in zip(run(tensors, state, frames, "fp32", device), (out, *after), strict=True):
        assert off(got, wanted) < LIMITS["fp32"]


def test_chunks_carry_the_state_of_the_whole(device: torch.device) -> None:
    tensors, _, frames = case("ragged")
    tokens = SHAPES["ragged"][3]
    whole = run(tensors, None, frames, "fp32", device)
    state = None
    for start, stop in ((0, 1), (1, 2)):
        rows = slice(start * tokens, stop * tokens)
        part = {name: x[:, rows].contiguous() if name in TOKENS else x for name, x in tensors.items()}
        part["rope"] = tensors["rope"][rows]
        out, *after = run(part, state, stop - start, "fp32", device)
        state = State(*after)
    for got, wanted in zip((out, *after), (whole[0][:, tokens:], *whole[1:]), strict=True):
        assert off(got, wanted.cpu()) < LIMITS["fp32"]


def test_sessions_in_a_batch_do_not_see_each_other(device: torch.device) -> None:
    tensors, state, frames = case("ragged")
    together = run(tensors, state, frames, "fp32", device)
    for row in range(2):
        one = slice(row, row + 1)
        part = {name: x[one] if name in TOKENS else x for name, x in tensors.items()}
        alone = run(part, State(state.kv[one], state.z[one]), frames, "fp32", device)
        for got, wanted in zip(together, alone, strict=True):
            assert torch.equal(got[one], wanted)


def test_the_output_can_be_e4m3(device: torch.device) -> None:
    tensors, state, frames = case("ragged")
    out, _ = naive_layer.gdn_layer_core(**tensors, state=state, frames=frames)
    step = float(out.abs().max()) / 448
    tensors["factor"] = torch.tensor([1 / step])
    got, *_ = run(tensors, state, frames, "fp32", device)
    assert got.dtype == torch.float8_e4m3fn
    assert off(got.float() * step, out) < 0.04


@pytest.mark.parametrize("precision", ["bf16", *LIMITS])
@pytest.mark.parametrize("shape", ["one frame", "ragged", "head of the model"])
def test_nothing_is_read_that_was_not_written(
    shape: str, precision: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = launcher.allocate

    def rubbish(p: Problem, device: torch.device) -> dict[str, Tensor]:
        return {name: tensor.fill_(torch.nan) for name, tensor in allocate(p, device).items()}

    tensors, state, frames = case(shape)
    clean = run(tensors, state, frames, precision, device)
    monkeypatch.setattr(launcher, "allocate", rubbish)
    for got, wanted in zip(run(tensors, state, frames, precision, device), clean, strict=True):
        assert torch.equal(got, wanted)
