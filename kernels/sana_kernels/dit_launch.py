"""Launch parameters of the kernels around the gated delta network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DiTLaunch:
    """Warps of a program per kernel, how much it takes at a time, and the most registers of a thread, 0 for any."""

    norm_rows: int
    norm_warps: int
    row_warps: int
    depthwise_rows: int
    depthwise_columns: int
    depthwise_channels: int
    depthwise_warps: int
    depthwise_stages: int
    cross_queries: int
    cross_keys: int
    cross_warps: int
    cross_stages: int
    cross_registers: int
    source: str


LAUNCH = DiTLaunch(
    1, 4, 4, 4, 40, 128, 1, 3, 64, 32, 4, 2, 128, "best of twelve or more per kernel on an H200, 2640 tokens"
)
