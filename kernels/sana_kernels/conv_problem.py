"""What the kernels around the VAE's convolutions are about: sizes and layouts, as compile-time constants."""

from dataclasses import dataclass

CONTEXT = 2
"""Past input frames that a causal three-tap convolution needs."""

NARROWEST = 16
ELEMENTS = 4096
"""Values that one program of `fill` works on: enough to hide the memory's latency, few enough for its registers."""

TILE_VALUES, THREAD_VALUES = 512, 4
"""Channels that one program and one thread of `unfold` hold, each with all products of a tile."""


def padded(width: int) -> int:
    """The next power of two, which is what kernels compute on."""
    return max(NARROWEST, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Fill:
    """The input of one convolution: `frames` x `height` x `width` x `channels` behind `lead` frames, in a `halo`.

    `source` says where the values are from: "sum" of a convolution, its bias and, if `residual`, a tensor; "down" and
    "up", the change of resolution by (`t`, `h`, `w`); "frames", 8-bit frames folded by patches of `h`. `drop`: frames
    that "up" leaves out at the start. `norm`: RMS norm over channels and SiLU. `keep`: write what is there before the
    norm. `folded_rows`: the convolution left Winograd products, of so many rows per place; 0, pixels.
    """

    source: str
    frames: int
    height: int
    width: int
    channels: int
    lead: int
    halo: int
    norm: bool
    keep: bool
    residual: bool = False
    t: int = 1
    h: int = 1
    w: int = 1
    drop: int = 0
    skip_channels: int = 0
    skip_halo: int = 0
    folded_rows: int = 0

    @property
    def pixels(self) -> int:
        return self.frames * self.height * self.width

    @property
    def channel_pad(self) -> int:
        return padded(self.channels)

    @property
    def rows(self) -> int:
        """Of the buffer."""
        return self.height + 2 * self.halo

    @property
    def columns(self) -> int:
        return self.width + 2 * self.halo

    @property
    def rim(self) -> int:
        """Pixels of one plane's halo."""
        return self.rows * self.columns - self.height * self.width

    @property
    def down(self) -> int:
        """Winograd tiles in a column."""
        return tiles(self.height)

    @property
    def across(self) -> int:
        return tiles(self.width)

    @property
    def volume(self) -> int:
        """Pixels that are folded into one, or unfolded from one."""
        return self.t * self.h * self.w

    @property
    def buffer_shape(self) -> tuple[int, int, int, int]:
        return self.lead + self.frames, self.rows, self.columns, self.channels

    @property
    def block(self) -> int:
        """Pixels of one program."""
        return max(1, ELEMENTS // self.channel_pad)

    @property
    def tile_block(self) -> int:
        """Winograd tiles of one program."""
        return max(1, TILE_VALUES // self.channel_pad)

    @property
    def tile_warps(self) -> int:
        """So many that a thread has few enough channels to hold all products of them in registers."""
        return max(1, self.tile_block * self.channel_pad // THREAD_VALUES // 32)


@dataclass(frozen=True)
class Patches:
    """8-bit frames out of `frames` x `height` x `width` patches of `patch` x `patch` pixels."""

    frames: int
    height: int
    width: int
    patch: int

    @property
    def values(self) -> int:
        return self.frames * self.height * self.width * 3 * self.patch**2

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.height * self.patch, self.width * self.patch, 3


TAPS, PLACES = 9, 36
"""Entries of a 3x3 kernel, and of a 6x6 window: 4x4 outputs and their neighbours."""

NEAR, NEAR_2, NEAR_3 = (2 / 3, (2 / 3) ** 2, (2 / 3) ** 3)
FAR, FAR_2, FAR_3 = (3 / 2, (3 / 2) ** 2, (3 / 2) ** 3)
"""Points of Winograd's transform beside 0 and infinity, with either sign. Their product is 1, which saves factors."""


def tiles(pixels: int) -> int:
    """Tiles of 4 along an axis."""
    return -(-pixels // 4)


@dataclass(frozen=True)
class Winograd:
    """A convolution of `frames` + 2 planes of `rows` x `columns`, with (`pad` 0) or without (`pad` 1) a halo.

    Its products may be part of a tensor of more frames, with `product_rows` rows per place.
    """

    frames: int
    rows: int
    columns: int
    channels: int
    outputs: int
    pad: int
    product_rows: int

    @property
    def down(self) -> int:
        """Tiles in a column."""
        return tiles(self.rows + 2 * self.pad - 2)

    @property
    def across(self) -> int:
        return tiles(self.columns + 2 * self.pad - 2)

    @property
    def overhang(self) -> bool:
        """Whether windows reach beyond the planes."""
        return self.pad > 0 or self.rows % 4 != 2 or self.columns % 4 != 2

    @property
    def tiles(self) -> int:
        """Of one plane."""
        return self.down * self.across

    @property
    def folded(self) -> int:
        """Tiles of all planes, past ones included."""
        return (self.frames + CONTEXT) * self.tiles
