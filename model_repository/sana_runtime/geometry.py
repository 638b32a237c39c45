"""The chunk grid of a stream: which latent frames and pixel frames belong to which chunk (spec 4.1, 7.1)."""

from dataclasses import dataclass

from sana_runtime.errors import ConfigError, SequenceError


@dataclass(frozen=True)
class Chunk:
    """One step of a stream; `start` is the absolute index of its first latent frame, `frames` counts pixel frames."""

    index: int
    start: int
    latents: int
    frames: int


@dataclass(frozen=True)
class StreamGeometry:
    """Sizes of an open-ended stream of one model. Pixels are `height` x `width`, latents smaller by the two ratios."""

    height: int
    width: int
    latent_channels: int
    spatial_ratio: int = 32
    temporal_ratio: int = 8
    first_latents: int = 5
    steady_latents: int = 3
    max_latents: int = 1024

    def __post_init__(self) -> None:
        if self.height % self.spatial_ratio or self.width % self.spatial_ratio:
            raise ConfigError(
                f"frame size {self.width}x{self.height} is not a multiple of {self.spatial_ratio}: "
                f"choose a width and height that the VAE's compression divides"
            )

    @property
    def latent_height(self) -> int:
        return self.height // self.spatial_ratio

    @property
    def latent_width(self) -> int:
        return self.width // self.spatial_ratio

    @property
    def tokens_per_frame(self) -> int:
        return self.latent_height * self.latent_width

    @property
    def first_frames(self) -> int:
        """Pixel frames of chunk 0: the causal VAE turns its first latent frame into a single pixel frame."""
        return self.temporal_ratio * (self.first_latents - 1) + 1

    @property
    def steady_frames(self) -> int:
        return self.temporal_ratio * self.steady_latents

    @property
    def max_chunks(self) -> int:
        """Chunks until the RoPE table (one row per latent frame, spec 3.6) is used up."""
        return 1 + (self.max_latents - self.first_latents) // self.steady_latents

    def chunk(self, index: int) -> Chunk:
        """The chunk at `index`; raises SequenceError past the end of the RoPE table."""
        if index >= self.max_chunks:
            raise SequenceError(
                f"chunk {index} is beyond the longest stream this model can hold, {self.max_chunks} chunks "
                f"({self.max_latents} latent frames): start a new stream"
            )
        if index == 0:
            return Chunk(0, 0, self.first_latents, self.first_frames)
        start = self.first_latents + (index - 1) * self.steady_latents
        return Chunk(index, start, self.steady_latents, self.steady_frames)

    def latent_shape(self, chunk: Chunk) -> tuple[int, int, int, int, int]:
        """(1, C, T, h, w) of a chunk's latent."""
        return 1, self.latent_channels, chunk.latents, self.latent_height, self.latent_width


def clip_boundaries(latents: int, base: int = 3) -> list[int]:
    """Boundaries of a finite clip's chunks: chunk 0 takes the remainder, all others `base` latent frames (spec 4.1)."""
    if latents <= base:
        raise ConfigError(f"a clip of {latents} latent frames is too short: streaming needs more than {base}")
    first = base + latents % base
    return [0, *range(first, latents + 1, base)]
