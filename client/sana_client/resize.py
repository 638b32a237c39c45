"""Source frames to the model's size: scale to cover, bilinear, then a centred crop (spec 7.1), in numpy."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Bilinear sampling along one axis: output i is `low[i] + weight[i] * (high[i] - low[i])` of the source."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    @classmethod
    def covering(cls, source: int, scaled: int, target: int) -> "Axis":
        """Sample `source` positions as if scaled to `scaled` (half-pixel centres, no antialias), then cropped."""
        offset = (scaled - target) // 2
        position = np.arange(offset, offset + target, dtype=np.float64)
        position = np.maximum((position + 0.5) * (source / scaled) - 0.5, 0)
        low = np.minimum(position.astype(np.int64), source - 1)
        return cls(low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32))


@dataclass(frozen=True)
class Resizer:
    """Frames of one source size to one target size."""

    rows: Axis
    columns: Axis
    same: bool

    def float_frame(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) to float32 (H, W, 3) on the 0..255 scale, before rounding."""
        rows, columns = self.rows, self.columns
        tall = _mix(frame[rows.low], frame[rows.high], rows.weight[:, None, None])
        return _mix(tall[:, columns.low], tall[:, columns.high], columns.weight[:, None])

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) to uint8 (H, W, 3)."""
        if self.same:
            return frame
        return np.rint(self.float_frame(frame)).astype(np.uint8)


def _mix(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    base = low.astype(np.float32)
    return base + (high - base) * weight


@lru_cache(maxsize=8)
def resizer(source: tuple[int, int], target: tuple[int, int]) -> Resizer:
    """The resizer from (h, w) to (H, W): the larger of the two ratios, so that the target is covered."""
    scale = max(target[0] / source[0], target[1] / source[1])
    scaled = [round(size * scale) for size in source]
    rows, columns = (Axis.covering(*sizes) for sizes in zip(source, scaled, target, strict=True))
    return Resizer(rows, columns, same=source == target)
