"""A contact sheet: moments of a video side by side, the source above its edit, as one PNG."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from sana_client.errors import VideoError
from sana_client.resize import resizer

COLUMNS = 8
WIDTH = 240
GAP = 6
BACKGROUND = 24


class ContactSheet:
    """Collects pairs of frames; however long the video, at most twice `columns` of them are kept, evenly spread."""

    def __init__(self, columns: int = COLUMNS) -> None:
        self._columns = columns
        self._stride = 1
        self._seen = 0
        self._pairs: list[np.ndarray] = []

    def add(self, source: np.ndarray, edited: np.ndarray) -> None:
        """Offer a moment of the video: two uint8 frames (H, W, 3) of one size."""
        if self._seen % self._stride == 0:
            self._pairs.append(np.stack([_thumbnail(source), _thumbnail(edited)]))
        self._seen += 1
        if len(self._pairs) > 2 * self._columns:
            self._pairs = self._pairs[::2]
            self._stride *= 2

    def image(self) -> np.ndarray:
        """The sheet, uint8 (H, W, 3): one column per moment, source in the upper row, edit in the lower."""
        count = min(self._columns, len(self._pairs))
        chosen = [self._pairs[i] for i in np.linspace(0, len(self._pairs) - 1, count).round().astype(int)]
        height, width = chosen[0].shape[1:3]
        sheet = np.full((2 * (height + GAP) + GAP, count * (width + GAP) + GAP, 3), BACKGROUND, np.uint8)
        for column, pair in enumerate(chosen):
            left = GAP + column * (width + GAP)
            for row, frame in enumerate(pair):
                top = GAP + row * (height + GAP)
                sheet[top : top + height, left : left + width] = frame
        return sheet

    def save(self, path: Path) -> None:
        """Write the sheet as PNG, nothing when no moment was offered; raises VideoError if that fails."""
        if not self._pairs:
            return
        try:
            path.write_bytes(png(self.image()))
        except OSError as error:
            raise VideoError(f"{path} cannot be written ({error.strerror}): choose another file") from None


def png(image: np.ndarray) -> bytes:
    """A uint8 image (H, W, 3) as a PNG file."""
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt = "rgb24"
    encoder.time_base = Fraction(1)
    packets = encoder.encode(av.VideoFrame.from_ndarray(image, format="rgb24")) + encoder.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    # Every n-th pixel first: reducing bilinearly looks at four pixels only, so this costs no quality and saves time.
    step = max(1, width // (2 * WIDTH))
    reduced = frame[::step, ::step]
    return resizer(reduced.shape[:2], (max(1, round(height * WIDTH / width)), WIDTH))(reduced)
