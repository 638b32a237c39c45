"""The denoiser stage: the steps of one chunk, then the cache pass that writes the state (spec 4.2, 5.1)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sana_runtime.batching import Call, State, Steps, Tensors
from sana_runtime.engine import Engine
from sana_runtime.errors import EngineError, RequestError
from sana_runtime.geometry import Chunk
from sana_runtime.manifest import Manifest
from sana_runtime.memory import Array
from sana_runtime.regions import Regions
from sana_runtime.schedule import chunk_noise, streaming_schedule
from sana_runtime.stages import Request, StatefulStage, step
from sana_runtime.state import IN

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Prompt:
    """Text tensors of the last chunk with the `prompt` engine's outputs for them, which every DiT call reads."""

    text: np.ndarray
    mask: np.ndarray
    outputs: State

    def holds(self, text: np.ndarray, mask: np.ndarray) -> bool:
        return np.array_equal(self.text, text) and np.array_equal(self.mask, mask)


@dataclass(frozen=True)
class DenoiserState:
    """What a stream carries through the denoiser; `carried` are the DiT's state tensors by name.

    `noise` is that of the next chunk, where the engine reads it; `regions` are the client's shared memory.
    """

    seed: int
    prompt: Prompt
    carried: State
    noise: Array
    regions: Regions


class DenoiserStage(StatefulStage[DenoiserState]):
    """`source` f32 (1, C, T, h, w), `text` f32 (1, L, D) and `text_mask` f32 (1, L) to `latent` of source's shape.

    Text of no tokens is that of the stream's chunk before. Latents are of no frames where the request names their
    place, which the edited one takes after the source.
    """

    def __init__(
        self, engines: Mapping[str, Engine], manifest: Manifest, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(engines, manifest, clock)
        self._schedule = streaming_schedule(manifest.steps)
        self._text_shape = (1, manifest.config["text"]["tokens"], manifest.config["text"]["width"])
        self._steady_shape = self.geometry.latent_shape(self.geometry.chunk(1))
        self._steady_inputs = {spec.name: spec for spec in engines["steady"].inputs}
        self._whole = "noise" in self._steady_inputs
        if "recent_valid" not in self._steady_inputs:
            raise EngineError("the denoiser's steady engine has no input recent_valid: build the repository again")
        self._recent = _recent(self._steady_inputs["recent_valid"].shape[1])

    def advance(
        self, state: DenoiserState | None, chunk: Chunk, request: Request
    ) -> Steps[tuple[Tensors, DenoiserState]]:
        places = self.places(request, state)
        place = self.latent_place(places, chunk)
        source = request.tensor("source", "float32", self.geometry.latent_shape(chunk), place)
        seed = _seed(request, state)
        prompt = yield from self._prompt(request, state)
        feeds = {"source": source, **prompt.outputs, **self._position(chunk)}
        noise = state.noise if state else self._noise(seed, chunk.index, source.shape)
        edit = self._edit_whole if self._whole else self._edit_stepwise
        carried = state.carried if state else None
        latent, carried = yield from edit(feeds, carried, noise, request.end)
        # A GPU still computes the latent, which the download waits for.
        following = self._noise(seed, chunk.index + 1, self._steady_shape)
        outputs = {"latent": self.made(latent, place, self.empty_latent(0))}
        return outputs, DenoiserState(seed, prompt, carried, following, places.regions)

    def placeholder(self) -> Tensors:
        return {"latent": self.empty_latent()}

    def _noise(self, seed: int, chunk: int, shape: tuple[int, ...]) -> Array:
        return self.memory.upload(chunk_noise(seed, chunk, shape))

    def _edit_whole(self, feeds: State, carried: State | None, noise: Array, end: bool) -> Steps[tuple[Array, State]]:
        """The chunk by an engine that holds all steps and the cache pass."""
        outputs, written = yield from step({**feeds, "noise": noise}, carried)
        return outputs["latent"], self._complete(carried, written)

    def _edit_stepwise(
        self, feeds: State, carried: State | None, latent: Array, end: bool
    ) -> Steps[tuple[Array, State]]:
        """The chunk by an engine that evaluates the DiT once."""
        steps = zip(self._schedule.timesteps, pairwise(self._schedule.sigmas), strict=True)
        for timestep, (sigma, following) in steps:
            outputs, _ = yield from _evaluate(feeds, carried, latent, timestep)
            latent = latent + (following - sigma) * outputs["velocity"]
        if end:
            # The last chunk of a stream has no successor that would read its cache.
            return latent, {}
        _, written = yield from _evaluate(feeds, carried, latent, 0.0)
        return latent, self._complete(carried, written)

    def _complete(self, carried: State | None, written: State) -> State:
        """State after the chunk; what the steady engine reads and the first one does not write starts as zeros."""
        return {**self._zeros(), **written} if carried is None else written

    def _zeros(self) -> Tensors:
        states = {name.removesuffix(IN): spec for name, spec in self._steady_inputs.items() if name.endswith(IN)}
        return {name: self.memory.zeros(spec) for name, spec in states.items()}

    def _position(self, chunk: Chunk) -> Tensors:
        """Where a steady chunk is: its first latent frame, and which recent slots hold a chunk, newest last."""
        if chunk.index == 0:
            return {}
        recent = self._recent[min(chunk.index, len(self._recent)) - 1]
        return {"frame_start": np.array([chunk.start], np.int64), "recent_valid": recent}

    def _prompt(self, request: Request, state: DenoiserState | None) -> Steps[Prompt]:
        if state and not request.tensor("text", "float32", (1, -1, self._text_shape[2])).size:
            return state.prompt
        text = request.tensor("text", "float32", self._text_shape)
        mask = request.tensor("text_mask", "float32", self._text_shape[:2])
        if state and state.prompt.holds(text, mask):
            return state.prompt
        # The request's tensors are views of memory that the server takes back after the answer.
        text, mask = text.copy(), mask.copy()
        outputs = yield Call("prompt", {"text": text, "text_mask": mask})
        return Prompt(text, mask, outputs)


def _recent(slots: int) -> list[np.ndarray]:
    """f32 (1, slots) with 1.0 in the slots that hold a chunk, newest last, by how many do."""
    return [(np.arange(slots) >= slots - count).astype(np.float32)[None] for count in range(slots + 1)]


def _evaluate(feeds: State, carried: State | None, latent: Array, timestep: float) -> Steps[tuple[Tensors, State]]:
    return step({**feeds, "latent": latent, "timestep": np.array([timestep], np.float32)}, carried)


def _seed(request: Request, state: DenoiserState | None) -> int:
    """The stream's noise seed, given with its first chunk; raises RequestError for one that is no seed or changes."""
    seed = request.parameters.get("seed", state.seed if state else 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise RequestError(f"parameter `seed` is {seed!r}: it has to be an integer from 0 to {MAX_SEED}")
    if state and seed != state.seed:
        raise RequestError(f"parameter `seed` changed from {state.seed} to {seed}: it is fixed when a stream begins")
    return seed
