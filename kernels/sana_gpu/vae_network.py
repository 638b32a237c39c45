"""One chunk of one stream through the VAE: convolutions, and between them one pass over memory each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from sana_gpu.vae_weights import STRIDES
from sana_kernels.conv import convolve
from sana_kernels.conv_ops import conv_frames, conv_input, conv_pixels, conv_resized, conv_unfold
from sana_kernels.conv_problem import CONTEXT

Tensors = Mapping[str, Tensor]
Made = tuple[Tensor, Sequence[int] | None]
"""What a convolution made: pixels, or Winograd products and the size they unfold to."""

Values = Callable[..., tuple[Tensor, Tensor | None]]
"""Makes the input of the next convolution, and returns with it the sum it started from if that is kept."""


class Carried(Protocol):
    """The last two input frames of every convolution (2, H', W', C) by name, of the chunk before and of this one."""

    @property
    def at_start(self) -> bool:
        """Whether there is no chunk before."""
        ...

    def read(self, name: str, into: Tensor) -> None:
        """Those of the chunk before, which there has to be."""
        ...

    def write(self, name: str, frames: Tensor) -> None:
        """Keep the values of `frames`, part of a tensor that is not to be kept."""
        ...


@dataclass(frozen=True)
class InHand:
    """Carried frames as tensors: `past`, empty at the start of a stream, and `written`, filled with this chunk's."""

    past: Tensors
    written: dict[str, Tensor] = field(default_factory=dict)

    @property
    def at_start(self) -> bool:
        return not self.past

    def read(self, name: str, into: Tensor) -> None:
        into.copy_(self.past[name])

    def write(self, name: str, frames: Tensor) -> None:
        self.written[name] = frames.clone()


class Chunk:
    """Walks a chunk from convolution to convolution; what a convolution made waits for the pass that reads it."""

    def __init__(self, weights: Tensors, carried: Carried, halo: bool) -> None:
        self.weights, self.carried, self.halo = weights, carried, halo
        self._waiting: Values | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of everything between two convolutions."""
        return self.weights["conv_in.weight"].dtype

    def begin(self, values: Values) -> None:
        """What the first convolution reads."""
        self._waiting = values

    def conv(self, name: str, lead: int = CONTEXT, **how: bool) -> tuple[Made, Tensor, Tensor | None]:
        """The convolution `name` of what waits: its output, the input it read, and the sum that was kept."""
        buffer, kept = self._input(name, lead, **how)
        made = convolve(buffer, self.weights[name + ".weight"], pad=not self.halo)
        self._waiting = partial(_sum, made, self.bias(name), self.dtype)
        return made, buffer, kept

    def _input(self, name: str, lead: int, **how: bool) -> tuple[Tensor, Tensor | None]:
        values, self._waiting = self._waiting, None
        assert values is not None, "a convolution without input"
        start = self.carried.at_start
        buffer, kept = values(start=start, lead=lead, halo=self.halo, **how)
        if not start:
            self.carried.read(name, buffer[:lead])
        self.carried.write(name, buffer[-CONTEXT:])
        return buffer, kept

    def bias(self, name: str) -> Tensor:
        return self.weights[name + ".bias"]

    def resnets(self, name: str, count: int) -> None:
        for index in range(count):
            self.resnet(f"{name}.resnets.{index}")

    def resnet(self, name: str) -> None:
        """x + conv2(silu(norm(conv1(silu(norm(x))))))."""
        skip = self.conv(f"{name}.conv1", norm=True, keep=True)[2]
        made = self.conv(f"{name}.conv2", norm=True)[0]
        self._waiting = partial(_sum, made, self.bias(f"{name}.conv2"), self.dtype, skip)

    def resize(self, kind: str, name: str, stride: Sequence[int]) -> None:
        """A convolution and a change of resolution, "down" or "up", beside a skip."""
        spare = stride[0] - 1 if self.carried.at_start else 0
        lead = CONTEXT + spare if kind == "down" else CONTEXT
        made, before, _ = self.conv(name, lead)
        drop = spare if kind == "up" else 0
        self._waiting = partial(_resized, kind, made, self.bias(name), before, stride, drop)

    def end(self, name: str, pieces: int = 1) -> Iterator[Tensor]:
        """What the last convolution makes, whose bias is not added yet, in up to so many pieces along time."""
        buffer, _ = self._input(name, CONTEXT, norm=True)
        frames = len(buffer) - CONTEXT
        count = min(pieces, frames)
        for begin, end in pairwise(frames * index // count for index in range(count + 1)):
            yield convolve(buffer[begin : end + CONTEXT], self.weights[name + ".weight"], pad=not self.halo)[0]


def encode(weights: Tensors, config: Mapping[str, Any], frames: Tensor, carried: Carried) -> Iterator[Tensor]:
    """uint8 frames (1, F, H, W, 3) to the normalised latent (1, C, T, h, w) in float32, as one piece."""
    chunk = Chunk(weights, carried, halo=False)
    chunk.begin(partial(_frames, frames[0], config["patch"], chunk.dtype))
    chunk.conv("conv_in")
    stages = zip(config["encoder_widths"], config["encoder_layers"], config["downsample"], strict=False)
    for index, (_, layers, kind) in enumerate(stages):
        chunk.resnets(f"down_blocks.{index}", layers)
        chunk.resize("down", f"down_blocks.{index}.downsamplers.0.conv", STRIDES[kind])
    chunk.resnets("mid_block", config["encoder_layers"][-1])
    for y in chunk.end("conv_out"):
        latent = (y.float() + chunk.bias("conv_out") - weights["latents_mean"]) / weights["latents_std"]
        yield latent.permute(3, 0, 1, 2)[None].contiguous()


PIECES = 6
"""Of decoded frames: so many that the last of them, which is alone on its way to the host, is a small share."""


def decode(weights: Tensors, config: Mapping[str, Any], latent: Tensor, carried: Carried) -> Iterator[Tensor]:
    """Normalised latent (1, C, T, h, w) in float32 to uint8 frames (1, F, H, W, 3), in pieces along time."""
    chunk = Chunk(weights, carried, halo=True)
    latent = latent[0].permute(1, 2, 3, 0) * weights["latents_std"] + weights["latents_mean"]
    zero = torch.zeros_like(weights["latents_mean"])
    chunk.begin(partial(_sum, (latent.to(chunk.dtype).contiguous(), None), zero, chunk.dtype))
    chunk.conv("conv_in")
    layers = config["decoder_layers"][::-1]
    chunk.resnets("mid_block", layers[0])
    for index, (count, kind) in enumerate(zip(layers[1:], config["upsample"], strict=True)):
        chunk.resize("up", f"up_blocks.{index}.upsamplers.0.conv", STRIDES[kind])
        chunk.resnets(f"up_blocks.{index}", count)
    for y in chunk.end("conv_out", PIECES):
        yield conv_pixels(y, chunk.bias("conv_out"), config["patch"])[None]


def _sum(
    made: Made, bias: Tensor, dtype: torch.dtype, skip: Tensor | None = None, *,
    start: bool, lead: int, halo: bool, norm: bool = False, keep: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    y, size = made
    if size is None:
        return conv_input(y, bias, skip, start, lead, halo, norm, keep), y if keep else None
    buffer, kept = conv_unfold(y, bias, skip, start, size, dtype, lead, halo, norm, keep)
    return buffer, (kept if skip is None else skip) if keep else None


def _resized(
    kind: str, made: Made, bias: Tensor, before: Tensor, stride: Sequence[int], drop: int, *,
    start: bool, lead: int, halo: bool, norm: bool = False, keep: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    return conv_resized(kind, made[0], bias, before, list(stride), start, lead, halo, norm, drop)


def _frames(
    frames: Tensor, patch: int, dtype: torch.dtype, *, start: bool, lead: int, halo: bool
) -> tuple[Tensor, None]:
    return conv_frames(frames, patch, start, dtype), None
