"""Rotary angles of any chunk, from one table over time and one over space (spec 3.6)."""

import numpy as np
import torch
from torch import Tensor

THETA = 10000.0


class RopeTables:
    """cos and sin of each channel pair side by side: `time` (max_frames, d_t) and `space` (S, d - d_t)."""

    def __init__(
        self, head: int, max_frames: int, height: int, width: int, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        side = 2 * (head // 6)
        rows = np.repeat(_angles(side, height), width, axis=0)
        columns = np.tile(_angles(side, width), (height, 1))
        space = np.concatenate([rows, columns], axis=1)
        self.time = _interleaved(_angles(head - 2 * side, max_frames), dtype, device)
        self.space = _interleaved(space, dtype, device)

    def rows(self, frame_start: Tensor, frames: int) -> Tensor:
        """(B, frames * S, d) from the absolute latent frame_start (B,) int64 on."""
        index = frame_start[:, None] + torch.arange(frames, device=frame_start.device)
        shape = *index.shape, len(self.space), -1
        time = self.time[index].unsqueeze(2).expand(shape)
        return torch.cat([time, self.space.expand(shape)], dim=-1).flatten(1, 2)


def _angles(width: int, positions: int) -> np.ndarray:
    """(positions, width / 2) in float64; every axis has its own full range of frequencies."""
    frequencies = THETA ** (-np.arange(0, width, 2, dtype=np.float64) / width)
    return np.outer(np.arange(positions, dtype=np.float64), frequencies)


def _interleaved(angles: np.ndarray, dtype: torch.dtype, device: str | torch.device) -> Tensor:
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(len(angles), -1)
    return torch.from_numpy(pairs).to(device, dtype)
