"""Rotary position table over time, height and width (spec 3.6)."""

import numpy as np
import torch
from torch import Tensor, nn

from sana_runtime.errors import SequenceError

THETA = 10000.0
MAX_FRAMES = 1024

Rope = tuple[Tensor, Tensor]
"""(cos, sin), each (N, d / 2) float32, one row per token in frame, row, column order."""


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of the time, height and width axes; time takes what the two others leave."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def axis_angles(width: int, positions: range) -> np.ndarray:
    """Angles (positions, width / 2) in float64; every axis has its own full range of frequencies."""
    frequencies = THETA ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return np.outer(np.asarray(positions, dtype=np.float64), frequencies)


def spatial_angles(head_dim: int, height: int, width: int) -> np.ndarray:
    """Angles (height * width, pairs of both spatial axes) in float64."""
    _, row_width, column_width = axis_widths(head_dim)
    rows = np.repeat(axis_angles(row_width, range(height)), width, axis=0)
    columns = np.tile(axis_angles(column_width, range(width)), (height, 1))
    return np.concatenate([rows, columns], axis=1)


def rope_angles(head_dim: int, frames: range, height: int, width: int, max_frames: int = MAX_FRAMES) -> np.ndarray:
    """Angles (N, head_dim / 2) in float64 for absolute latent `frames`. Raises SequenceError past the table."""
    if frames.stop > max_frames:
        raise SequenceError(
            f"latent frames {frames.start} to {frames.stop - 1} are beyond the rotary table of {max_frames} frames: "
            f"start a new stream"
        )
    time = np.repeat(axis_angles(axis_widths(head_dim)[0], frames), height * width, axis=0)
    return np.concatenate([time, np.tile(spatial_angles(head_dim, height, width), (len(frames), 1))], axis=1)


def rope_rows(head_dim: int, frames: range, height: int, width: int, max_frames: int = MAX_FRAMES) -> Rope:
    """(cos, sin) rows of the tokens of absolute latent `frames`. Raises SequenceError past the table."""
    angles = rope_angles(head_dim, frames, height, width, max_frames)
    return _float32(np.cos(angles)), _float32(np.sin(angles))


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate adjacent channel pairs of x (B, h, N, d); the result has the dtype of x."""
    cos, sin = rope
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class RopeTable(nn.Module):
    """The rows of any chunk, looked up by its absolute start, for a graph that serves every chunk of a stream.

    Time and space rows are kept apart: one table over both would hold max_frames * height * width rows.
    """

    def __init__(self, head_dim: int, max_frames: int, height: int, width: int) -> None:
        super().__init__()
        time = axis_angles(axis_widths(head_dim)[0], range(max_frames))
        space = spatial_angles(head_dim, height, width)
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            self.register_buffer(f"time_{name}", _float32(function(time)), persistent=False)
            self.register_buffer(f"space_{name}", _float32(function(space)), persistent=False)

    def forward(self, frame_start: Tensor, frames: int) -> Rope:
        """Rows of `frames` latent frames from frame_start (1,) int64 on; frame_start + frames <= max_frames."""
        index = frame_start + torch.arange(frames, device=frame_start.device)
        return self._rows("cos", index), self._rows("sin", index)

    def _rows(self, function: str, index: Tensor) -> Tensor:
        time = self.get_buffer(f"time_{function}").index_select(0, index)
        space = self.get_buffer(f"space_{function}")
        time = time.unsqueeze(1).expand(-1, len(space), -1)
        return torch.cat([time, space.expand(len(index), -1, -1)], dim=-1).flatten(0, 1)


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
