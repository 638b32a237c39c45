"""Compile-time constants of the kernels of the transformer around its gated delta networks."""

from dataclasses import dataclass

from sana_kernels.problem import padded


@dataclass(frozen=True)
class RowShape:
    """Tokens (B, T, S) of `width` channels in heads of `head`; `rows` counts them."""

    rows: int
    width: int
    frames: int
    tokens: int
    head: int

    @property
    def pad(self) -> int:
        return padded(self.width)

    @property
    def piece(self) -> int:
        """The largest power of two in a row."""
        return 1 << (self.width.bit_length() - 1)

    @property
    def rest(self) -> int:
        """What is left of a row behind the piece, padded."""
        return padded(max(self.width - self.piece, 1))


@dataclass(frozen=True)
class ImageShape:
    """Channels-last images, one per frame; `channels` counts those that come out, twice as many go in."""

    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class CrossShape:
    """Attention of `tokens` tokens per stream to `keys` keys."""

    heads: int
    head: int
    tokens: int
    keys: int

    @property
    def pad(self) -> int:
        return padded(self.head)

    @property
    def scale(self) -> float:
        return self.head**-0.5
