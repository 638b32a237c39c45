"""The gated MBConv feed-forward layer with a temporal convolution (spec 3.10)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int, int]
"""Latent frames, rows and columns of the tokens of one call."""


class GatedMBConv(nn.Module):
    """Pointwise, depthwise 3x3 and gated pointwise layers per frame, then three taps over time.

    Pointwise layers are linear on channels-last tokens, and the temporal one is linear over three stacked frames: that
    is what they cost, and what a precision policy can name.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.inverted_conv = nn.Linear(hidden, 2 * width)
        self.depth_conv = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.point_conv = nn.Linear(width, hidden, bias=False)
        self.t_conv = nn.Linear(3 * hidden, hidden, bias=False)

    def forward(self, x: Tensor, grid: Grid, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, C); `tail` (B, S, C) is the frame left of the chunk, None for zeros.

        Returns (B, N, C) and the chunk's last frame before the temporal layer, the tail of the next chunk.
        """
        point = self.per_frame(x, grid).unflatten(1, (grid[0], -1))
        zeros = torch.zeros_like(point[:, 0])
        left = zeros if tail is None else tail
        # The frame right of a chunk is unknown when the chunk is computed, and counts as zero even inside a clip.
        padded = torch.cat([left.unsqueeze(1), point, zeros.unsqueeze(1)], dim=1)
        taps = torch.cat([padded[:, :-2], point, padded[:, 2:]], dim=-1)
        return point.flatten(1, 2) + self.t_conv(taps.flatten(1, 2)), point[:, -1]

    def per_frame(self, x: Tensor, grid: Grid) -> Tensor:
        """Everything before the temporal layer, (B, N, C) to (B, N, C)."""
        _, height, width = grid
        wide = F.silu(self.inverted_conv(x))
        images = wide.reshape(-1, height, width, wide.shape[-1]).permute(0, 3, 1, 2)
        tokens = self.depth_conv(images).permute(0, 2, 3, 1).reshape(wide.shape)
        value, gate = tokens.chunk(2, dim=-1)
        return self.point_conv(value * F.silu(gate))
