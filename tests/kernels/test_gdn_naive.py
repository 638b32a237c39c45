"""The recurrence against a loop over single tokens, and the two laws of streaming."""

import pytest
import torch
from gdn_cases import carried, operands
from torch import Tensor

from sana_kernels.naive import EPSILON, State, gdn

SHAPES = {
    # batch, heads, frames, tokens, key width, value width
    "one frame": (1, 1, 1, 4, 3, 3),
    "one token": (1, 2, 3, 1, 4, 4),
    "two frames": (1, 2, 2, 5, 4, 4),
    "batch": (2, 3, 4, 6, 5, 5),
    "value wider than key": (2, 1, 3, 7, 3, 6),
}


def write(state: State, frame: int, k: Tensor, v: Tensor, k_rot: Tensor, beta: Tensor, decay: Tensor) -> State:
    """Decay one head's state and write a frame's tokens one by one; all of them see the state before the frame."""
    kv, z = decay[frame] * state.kv, decay[frame] * state.z
    written_kv, written_z = kv.clone(), z.clone()
    for token in range(k.shape[1]):
        error = v[frame, token] - kv @ k_rot[frame, token]
        written_kv += beta[frame, token] * torch.outer(error, k_rot[frame, token])
        written_z += beta[frame, token] * (1 - torch.dot(k[frame, token], z)) * k[frame, token]
    return State(written_kv, written_z)


def one_head(tensors: list[Tensor], state: State) -> tuple[Tensor, State]:
    q, k, v, q_rot, k_rot, beta, decay = tensors
    frames, tokens = beta.shape
    zero = State(torch.zeros_like(state.kv), torch.zeros_like(state.z))
    later = [zero] * frames
    for frame in range(frames - 1, 0, -1):
        later[frame - 1] = write(later[frame], frame, k, v, k_rot, beta, decay)
    out = torch.zeros_like(v)
    for frame in range(frames):
        state = write(state, frame, k, v, k_rot, beta, decay)
        for token in range(tokens):
            num = (state.kv + later[frame].kv) @ q_rot[frame, token]
            out[frame, token] = num / (torch.dot(state.z + later[frame].z, q[frame, token]) + EPSILON)
    return out, state


def reference(tensors: list[Tensor], state: State) -> tuple[Tensor, State]:
    out = torch.zeros_like(tensors[2])
    kv, z = torch.zeros_like(state.kv), torch.zeros_like(state.z)
    for row in range(out.shape[0]):
        for head in range(out.shape[1]):
            before = State(state.kv[row, head], state.z[row, head])
            out[row, head], after = one_head([tensor[row, head] for tensor in tensors], before)
            kv[row, head], z[row, head] = after
    return out, State(kv, z)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_the_token_loop(shape: tuple[int, ...]) -> None:
    tensors, state = operands(shape), carried(shape)
    out, after = gdn(*tensors, state)
    wanted, wanted_after = reference(tensors, state)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(after, wanted_after, rtol=1e-12, atol=1e-12)


def test_float32_stays_near_float64() -> None:
    shape = SHAPES["batch"]
    exact, _ = gdn(*operands(shape), None)
    single, state = gdn(*operands(shape, dtype=torch.float32), None)
    assert single.dtype == state.kv.dtype == torch.float32
    assert (single - exact).abs().max() / exact.abs().max() < 2e-5


def test_no_state_is_a_zero_state() -> None:
    tensors, state = operands(SHAPES["batch"]), carried(SHAPES["batch"])
    out, after = gdn(*tensors, None)
    wanted, wanted_after = gdn(*tensors, State(torch.zeros_like(state.kv), torch.zeros_like(state.z)))
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(after, wanted_after)


def test_chunks_carry_the_state_of_the_whole() -> None:
    shape = (2, 2, 6, 4, 3, 3)
    tensors = operands(shape)
    whole, whole_state = gdn(*tensors, None)
    state = None
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        out, state = gdn(*(tensor[:, :, start:stop] for tensor in tensors), state)
    torch.testing.assert_close(state, whole_state)
    # The last chunk has no later frames in either run, so its output is the same as well.
    torch.testing.assert_close(out, whole[:, :, 3:])


def test_batch_rows_do_not_see_each_other() -> None:
    tensors, state = operands(SHAPES["batch"]), carried(SHAPES["batch"])
    out, after = gdn(*tensors, state)
    for row in range(2):
        one = slice(row, row + 1)
        alone, alone_after = gdn(*(tensor[one] for tensor in tensors), State(state.kv[one], state.z[one]))
        torch.testing.assert_close(out[one], alone)
        torch.testing.assert_close(State(after.kv[one], after.z[one]), alone_after)
