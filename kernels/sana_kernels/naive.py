"""The gated delta network recurrence in readable PyTorch: the reference, and what is exported (spec 3.7)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-8


class State(NamedTuple):
    """What a stream carries: `kv` (B, h, dv, dk), value x key, and the normaliser `z` (B, h, dk)."""

    kv: Tensor
    z: Tensor


class FrameUpdate(NamedTuple):
    """How a frame changes a state x: x <- decay (x - x erase) + write. Keys of `kv` are rotated, those of `z` are not.

    erase_kv, erase_z (B, h, dk, dk); write_kv (B, h, dv, dk); write_z (B, h, dk); decay (B, h).
    """

    erase_kv: Tensor
    write_kv: Tensor
    erase_z: Tensor
    write_z: Tensor
    decay: Tensor

    def written(self) -> State:
        """The state after this frame when the one before was zero."""
        return State(self.write_kv, self.write_z)

    def apply(self, state: State) -> State:
        # A matrix-vector product over z alone would be a matmul with one column, which engines run badly.
        erased_z = (self.erase_z * state.z.unsqueeze(-2)).sum(-1)
        kv = self.decay[..., None, None] * (state.kv - state.kv @ self.erase_kv) + self.write_kv
        return State(kv, self.decay[..., None] * (state.z - erased_z) + self.write_z)


def frame_updates(k: Tensor, v: Tensor, k_rot: Tensor, beta: Tensor, decay: Tensor) -> list[FrameUpdate]:
    """Sum every frame's tokens into one update per frame (the summary form of spec 3.7).

    k, k_rot (B, h, T, S, dk); v (B, h, T, S, dv); beta (B, h, T, S); decay (B, h, T).
    """
    weighted, weighted_rot = k * beta.unsqueeze(-1), k_rot * beta.unsqueeze(-1)
    # One product for both: six kernels fewer per block in an engine.
    erase_kv, write_kv = (torch.cat([k_rot, v], -1).mT @ weighted_rot).split([k.shape[-1], v.shape[-1]], -2)
    per_frame = (erase_kv, write_kv, k.mT @ weighted, weighted.sum(-2), decay)
    return [FrameUpdate(*tensors) for tensors in zip(*(tensor.unbind(2) for tensor in per_frame), strict=True)]


def scan(updates: Sequence[FrameUpdate], state: State | None) -> list[State]:
    """The state after each update, starting from `state` or from zero."""
    history = []
    for update in updates:
        state = update.written() if state is None else update.apply(state)
        history.append(state)
    return history


def scan_backward(updates: Sequence[FrameUpdate]) -> list[State]:
    """For every frame but the last, what the frames after it inside the chunk have written, latest frame first."""
    return scan(updates[:0:-1], None)[::-1]


def read(q: Tensor, q_rot: Tensor, history: Sequence[State]) -> tuple[Tensor, Tensor]:
    """Query each frame's state: numerator (B, h, T, S, dv) and denominator (B, h, T, S); q, q_rot (B, h, T, S, dk)."""
    kv = torch.stack([state.kv for state in history], dim=2)
    z = torch.stack([state.z for state in history], dim=2)
    return q_rot @ kv.mT, (q * z.unsqueeze(-2)).sum(-1)


def gdn(
    q: Tensor, k: Tensor, v: Tensor, q_rot: Tensor, k_rot: Tensor, beta: Tensor, decay: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """One chunk of T >= 1 frames of S tokens: each frame reads the past, itself and the later frames of the chunk.

    q, k, q_rot, k_rot (B, h, T, S, dk); v (B, h, T, S, dv); beta (B, h, T, S); decay (B, h, T). `state` is what the
    previous chunk returned, None for zero. Returns (B, h, T, S, dv) and the forward state after the last frame.
    """
    updates = frame_updates(k, v, k_rot, beta, decay)
    forward = scan(updates, state)
    both = [
        State(past.kv + later.kv, past.z + later.z)
        for past, later in zip(forward, scan_backward(updates), strict=False)
    ]
    num, den = read(q, q_rot, [*both, forward[-1]])
    return num / (den + EPSILON).unsqueeze(-1), forward[-1]
