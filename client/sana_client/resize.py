"""Source frames to the model's size: scale to cover, bilinear, then a centred crop (spec 7.1), in numpy."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

CHANNELS = 3


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

    def interleaved(self) -> "Axis":
        """The same over pixels whose channels lie side by side in memory, so that numpy gathers whole rows."""
        channel = np.arange(CHANNELS)
        low, high = ((index[:, None] * CHANNELS + channel).ravel() for index in (self.low, self.high))
        return Axis(low, high, self.weight.repeat(CHANNELS))

    def picked(self) -> slice:
        """The source positions where no weight mixes two of them: a crop, or every nth row or column."""
        first, last = int(self.low[0]), int(self.low[-1])
        return slice(first, last + 1, (last - first) // max(len(self.low) - 1, 1) or 1)

    def sample(self, values: np.ndarray, axis: int) -> np.ndarray:
        """The float32 samples along `axis` of a matrix of any type."""
        low = values.take(self.low, axis).astype(np.float32, copy=False)
        result = values.take(self.high, axis).astype(np.float32, copy=False)
        result -= low
        result *= self.weight if axis else self.weight[:, None]
        result += low
        return result


@dataclass(frozen=True)
class Resizer:
    """Frames of one source size to one target size."""

    rows: Axis
    columns: Axis

    def float_frame(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) to float32 (H, W, 3) on the 0..255 scale, before rounding."""
        flat = self.rows.sample(frame.reshape(frame.shape[0], -1), 0)
        return self.columns.interleaved().sample(flat, 1).reshape(len(self.rows.low), -1, CHANNELS)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (h, w, 3) to uint8 (H, W, 3)."""
        if not self.rows.weight.any() and not self.columns.weight.any():
            return frame[self.rows.picked(), self.columns.picked()]
        result = self.float_frame(frame)
        return np.rint(result, out=result).astype(np.uint8)


@lru_cache(maxsize=8)
def resizer(source: tuple[int, int], target: tuple[int, int]) -> Resizer:
    """The resizer from (h, w) to (H, W): the larger of the two ratios, so that the target is covered."""
    scale = max(target[0] / source[0], target[1] / source[1])
    scaled = [round(size * scale) for size in source]
    return Resizer(*(Axis.covering(*sizes) for sizes in zip(source, scaled, target, strict=True)))
