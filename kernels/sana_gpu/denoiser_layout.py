"""Names, shapes and places of what the denoiser's engines read and write."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sana_runtime.geometry import StreamGeometry
from sana_runtime.state import IN, OUT
from sana_runtime.tensors import TensorSpec


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

    def prompt(self) -> Iterator[TensorSpec]:
        """What a prompt becomes."""
        tokens = self.text[0]
        for block in range(len(self.gdn)):
            for kind in "kv":
                yield TensorSpec(f"block{block:02d}.text_{kind}", self.dtype, (1, self.heads, tokens, self.head))
        yield TensorSpec("text_bias", "float32", (1, 1, 1, tokens))

    def state(self, *slots: str) -> Iterator[TensorSpec]:
        """What blocks carry from chunk to chunk; of the window, the named slots, "sink" and "recent"."""
        tokens = {"sink": self.sink, "recent": self.slots * self.chunk}
        for block, gdn in enumerate(self.gdn):
            name = f"block{block:02d}"
            if gdn:
                yield TensorSpec(f"{name}.state_kv", "float32", (1, self.heads, self.head, self.head))
                yield TensorSpec(f"{name}.state_z", "float32", (1, self.heads, self.head))
            else:
                for slot in slots:
                    for kind in "kv":
                        shape = (1, self.heads, tokens[slot], self.head)
                        yield TensorSpec(f"{name}.{slot}_{kind}", self.dtype, shape)
            yield TensorSpec(f"{name}.tconv", self.dtype, (1, self.frame, self.hidden))

    def chunk_inputs(self, steady: bool) -> tuple[TensorSpec, ...]:
        """Of the engine of a first or of a later chunk."""
        latents = [TensorSpec(name, "float32", self._latent(name, steady)) for name in ("noise", "source")]
        if not steady:
            return *latents, *self.prompt()
        position = TensorSpec("frame_start", "int64", (1,)), TensorSpec("recent_valid", "float32", (1, self.slots))
        state = (TensorSpec(spec.name + IN, spec.dtype, spec.shape) for spec in self.state("sink", "recent"))
        return *latents, *position, *self.prompt(), *state

    def chunk_outputs(self, steady: bool) -> tuple[TensorSpec, ...]:
        """The same engine's outputs; the first chunk of the window never changes, so later ones do not return it."""
        state = self.state("recent" if steady else "sink")
        written = (TensorSpec(spec.name + OUT, spec.dtype, spec.shape) for spec in state)
        return TensorSpec("latent", "float32", self._latent("noise", steady)), *written

    def _latent(self, name: str, steady: bool) -> tuple[int, ...]:
        geometry = self.geometry
        frames = geometry.steady_latents if steady else geometry.first_latents
        return 1, self.channels[name], frames, geometry.latent_height, geometry.latent_width
