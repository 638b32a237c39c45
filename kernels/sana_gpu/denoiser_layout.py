"""Names, shapes and places of what the denoiser's engines read and write."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sana_gpu.addresses import Pack
from sana_runtime.geometry import StreamGeometry
from sana_runtime.state import IN, OUT
from sana_runtime.tensors import TensorSpec

POSITION = "frame_start", "recent_valid"
"""Inputs that say where a chunk is; the host reads them."""


@dataclass(frozen=True)
class Layout:
    """Sizes of one model and its streams, from the fields of its configuration (spec 4.3).

    `gdn` says of every block whether it carries a recurrent state, rather than keys; `dtype` is that of all state but
    the recurrent one.
    """

    gdn: tuple[bool, ...]
    heads: int
    head: int
    text: tuple[int, int]
    channels: Mapping[str, int]
    geometry: StreamGeometry
    window: int
    max_frames: int
    dtype: str

    @classmethod
    def of(cls, config: Mapping[str, Any], gdn: tuple[bool, ...], dtype: str) -> "Layout":
        dit = config["dit"]
        return cls(
            gdn,
            dit["heads"],
            dit["hidden"] // dit["heads"],
            (dit["text_tokens"], dit["caption_width"]),
            {"noise": dit["latent_channels"], "source": dit["source_channels"]},
            StreamGeometry(**config["geometry"]),
            config["stream"]["window"],
            dit["max_frames"],
            dtype,
        )

    @property
    def hidden(self) -> int:
        return self.heads * self.head

    @property
    def frame(self) -> int:
        """Tokens of a latent frame."""
        return self.geometry.tokens_per_frame

    @property
    def sink(self) -> int:
        """Tokens of the first chunk."""
        return self.geometry.first_latents * self.frame

    @property
    def chunk(self) -> int:
        """Tokens of every later chunk."""
        return self.geometry.steady_latents * self.frame

    @property
    def slots(self) -> int:
        """Recent chunks that a chunk sees beside the first."""
        return self.window - 1

    @cached_property
    def packs(self) -> Mapping[str, Pack]:
        """What lies together: what a prompt becomes, and what a stream carries.

        That is the `state` of all blocks that is new with every chunk, and for softmax blocks the keys and values of
        the `sink`, the first chunk, and of `recent` ones.
        """
        parts = {
            "prompt": self._prompt(),
            "state": self._state(),
            "sink": self._window(self.sink),
            "recent": self._window(self.slots * self.chunk),
        }
        return {name: Pack(tuple(specs)) for name, specs in parts.items()}

    def _prompt(self) -> Iterator[TensorSpec]:
        tokens = self.text[0]
        for block in range(len(self.gdn)):
            for kind in "kv":
                yield TensorSpec(f"block{block:02d}.text_{kind}", self.dtype, (1, self.heads, tokens, self.head))
        yield TensorSpec("text_bias", "float32", (1, 1, 1, tokens))

    def _state(self) -> Iterator[TensorSpec]:
        for block, gdn in enumerate(self.gdn):
            name = f"block{block:02d}"
            if gdn:
                yield TensorSpec(f"{name}.state_kv", "float32", (1, self.heads, self.head, self.head))
                yield TensorSpec(f"{name}.state_z", "float32", (1, self.heads, self.head))
            yield TensorSpec(f"{name}.tconv", self.dtype, (1, self.frame, self.hidden))

    def _window(self, tokens: int) -> Iterator[TensorSpec]:
        for block in (block for block, gdn in enumerate(self.gdn) if not gdn):
            for kind in "kv":
                yield TensorSpec(f"block{block:02d}.{kind}", self.dtype, (1, tokens, self.hidden))

    def chunk_inputs(self, steady: bool) -> tuple[TensorSpec, ...]:
        """Of the engine of a first or of a later chunk."""
        latents = [TensorSpec(name, "float32", self._latent(name, steady)) for name in ("noise", "source")]
        prompt = self.packs["prompt"].spec("prompt")
        if not steady:
            return *latents, prompt
        position = TensorSpec("frame_start", "int64", (1,)), TensorSpec("recent_valid", "float32", (1, self.slots))
        return *latents, *position, prompt, *(self.packs[name].spec(name + IN) for name in ("state", "sink", "recent"))

    def chunk_outputs(self, steady: bool) -> tuple[TensorSpec, ...]:
        """The same engine's outputs; the first chunk of the window never changes, so later ones do not return it."""
        latent = TensorSpec("latent", "float32", self._latent("noise", steady))
        return latent, *(self.packs[name].spec(name + OUT) for name in ("state", "recent" if steady else "sink"))

    def _latent(self, name: str, steady: bool) -> tuple[int, ...]:
        geometry = self.geometry
        frames = geometry.steady_latents if steady else geometry.first_latents
        return 1, self.channels[name], frames, geometry.latent_height, geometry.latent_width
