"""The Triton kernels on prepared operands against the reference in float64, and the two laws of streaming."""

import pytest
import torch
from gdn_cases import LIMITS, Shape, carried, off, operands
from torch import Tensor

from sana_kernels import naive
from sana_kernels.ops import run_gdn

SHAPES = {
    # batch, heads, frames, tokens, key width, value width
    "one frame": (1, 2, 1, 24, 16, 16),
    "one token": (1, 2, 3, 1, 16, 16),
    "ragged tokens": (1, 2, 3, 37, 16, 16),
    "ragged heads": (2, 1, 2, 20, 28, 28),
    "value wider than key": (2, 1, 2, 19, 12, 40),
    "key wider than value": (1, 2, 2, 19, 40, 12),
    "head of the model": (1, 1, 3, 70, 112, 112),
    "longest chunk": (1, 1, 11, 6, 16, 16),
}


def run(tensors: list[Tensor], state: naive.State | None, precision: str, device: torch.device) -> list[Tensor]:
    placed = [x.float().to(device) for x in tensors]
    kv, z = (None, None) if state is None else (x.float().to(device) for x in state)
    return list(run_gdn(*placed, kv, z, precision))


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_reference(shape: Shape, precision: str, device: torch.device) -> None:
    tensors, state = operands(shape), carried(shape)
    out, after = naive.gdn(*tensors, state)
    for got, wanted in zip(run(tensors, state, precision, device), (out, *after), strict=True):
        assert off(got, wanted) < LIMITS[precision]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bf16_loses_less_than_the_reference_in_bf16(shape: Shape, device: torch.device) -> None:
    tensors, state = operands(shape), carried(shape)
    out, after = naive.gdn(*tensors, state)
    plain, plain_after = naive.gdn(*(x.bfloat16() for x in tensors), naive.State(*(x.bfloat16() for x in state)))
    results = zip(run(tensors, state, "bf16", device), (plain, *plain_after), (out, *after), strict=True)
    for got, reference, wanted in results:
        assert off(got, wanted) < off(reference, wanted)


def test_no_state_is_a_zero_state(device: torch.device) -> None:
    shape = SHAPES["ragged tokens"]
    tensors, state = operands(shape), carried(shape)
    zero = naive.State(torch.zeros_like(state.kv), torch.zeros_like(state.z))
    for got, wanted in zip(run(tensors, None, "fp32", device), run(tensors, zero, "fp32", device), strict=True):
        assert torch.equal(got, wanted)


def test_chunks_carry_the_state_of_the_whole(device: torch.device) -> None:
    # The scan of the whole has past and later apart, those of the chunks join them.
    tensors = operands((1, 2, 6, 21, 16, 16))
    whole = run(tensors, None, "fp32", device)
    state = None
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        part = [tensor[:, :, start:stop].contiguous() for tensor in tensors]
        out, *after = run(part, state, "fp32", device)
        state = naive.State(*after)
    # The last chunk has no later frames in either run, so its output is the same as well.
    for got, wanted in zip((out, *after), (whole[0][:, :, 3:], *whole[1:]), strict=True):
        assert off(got, wanted.cpu()) < LIMITS["fp32"]


def test_what_bf16_loses_does_not_grow_with_the_stream(device: torch.device) -> None:
    exact = state = None
    lost = []
    for chunk in range(24):
        tensors = operands((1, 1, 2, 9, 16, 16), seed=chunk)
        wanted, exact = naive.gdn(*tensors, exact)
        out, *after = run(tensors, state, "bf16", device)
        state = naive.State(*after)
        lost.append(off(out, wanted))
    assert max(lost[12:]) < 1.5 * max(lost[:12])


def test_sessions_in_a_batch_do_not_see_each_other(device: torch.device) -> None:
    shape = (3, 2, 2, 21, 16, 16)
    tensors, state = operands(shape), carried(shape)
    together = run(tensors, state, "fp32", device)
    for row in range(3):
        one = slice(row, row + 1)
        alone = run([x[one] for x in tensors], naive.State(state.kv[one], state.z[one]), "fp32", device)
        for got, wanted in zip(together, alone, strict=True):
            assert torch.equal(got[one], wanted)
