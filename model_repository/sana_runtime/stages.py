"""The stages of a stream over loaded engines: one request in, one answer out, state kept by correlation id."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from sana_runtime.batching import Answer, Call, State, Steps, Tensors, attempt, together
from sana_runtime.clock import Lap
from sana_runtime.engine import Engine, lap_of
from sana_runtime.errors import RequestError
from sana_runtime.geometry import Chunk, StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.memory import Array
from sana_runtime.regions import Places, Regions
from sana_runtime.sessions import SessionTable
from sana_runtime.state import as_inputs, from_outputs


class StreamState(Protocol):
    """What a stage keeps of a stream; `regions` are its client's shared memory."""

    @property
    def regions(self) -> Regions: ...


S = TypeVar("S", bound=StreamState)

NOBODY = ("", "0")
"""Correlation ids of calls outside any stream: the server warms a model up with id 0."""

PROMPTS_KEPT = 16


@dataclass(frozen=True)
class Request:
    """One chunk of one stream as a stage sees it; `start` and `end` are the server's sequence flags."""

    tensors: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    correlation: str = ""
    start: bool = False
    end: bool = False

    @property
    def closing(self) -> bool:
        """Whether this request only frees the stream; raises RequestError for `close` on an ordinary chunk."""
        close = self.parameters.get("close", False)
        if not isinstance(close, bool) or (close and not (self.start and self.end)):
            raise RequestError(f"parameter `close` is {close!r} here: send true, on a request with START and END")
        return close

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], place: np.ndarray | None = None) -> np.ndarray:
        """The input `name`, of which `shape` may leave sizes open as -1, or what lies at its `place` if it has one.

        Raises RequestError saying what it must be.
        """
        if place is not None:
            return place
        array = self.tensors.get(name)
        if array is None:
            raise RequestError(f"input {name} is missing: send it as {dtype} {list(shape)}")
        fits = array.ndim == len(shape) and all(
            want in (-1, size) for want, size in zip(shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(dtype) or not fits:
            raise RequestError(
                f"input {name} is {array.dtype} {list(array.shape)}, this chunk takes {dtype} {list(shape)}"
            )
        return array


class Stage(Protocol):
    """What the server drives."""

    def run(self, request: Request) -> Tensors:
        """Answer one request. Raises RequestError if it is at fault, any other error if the engine failed."""
        ...

    def run_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests of different streams; RequestError where one is at fault, others if an engine failed."""
        ...

    def lap(self) -> Lap:
        """What its engines worked since this was last asked, by the clock of the device that they run on."""
        ...


class StatefulStage(ABC, Generic[S]):
    """A stage that carries state `S` from chunk to chunk of a stream."""

    def __init__(
        self, engines: Mapping[str, Engine], manifest: Manifest, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engines = engines
        self.memory = next(iter(engines.values())).memory
        self.memory.settle()
        turn = self.memory.new_turn()
        for engine in engines.values():
            engine.memory.turn = turn
        self.geometry: StreamGeometry = manifest.geometry
        self.sessions: SessionTable[S] = SessionTable(manifest.streams, manifest.idle_seconds, clock)

    def run(self, request: Request) -> Tensors:
        """Answer one request. Raises RequestError if it is at fault, any other error if the engine failed."""
        (answer,) = self.run_batch([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests of different streams, whose engine calls run together where they are the same.

        Engines take the stage's turn when they have all they need, and it ends with the answers.
        """
        try:
            return together(self.engines, [self._answer(request) for request in requests])
        finally:
            self.memory.turn.give()

    def lap(self) -> Lap:
        return lap_of(self.engines.values())

    def _answer(self, request: Request) -> Steps[Tensors]:
        """Advance the stream by one chunk, or free it if the request closes it."""
        if request.closing or request.correlation in NOBODY:
            self.sessions.drop(request.correlation)
            return self.placeholder()
        index = request.parameters.get("chunk")
        with self.sessions.step(request.correlation, index, start=request.start, end=request.end) as session:
            outputs, session.state = yield from self.advance(session.state, self.geometry.chunk(session.chunk), request)
        return outputs

    @abstractmethod
    def advance(self, state: S | None, chunk: Chunk, request: Request) -> Steps[tuple[Tensors, S]]:
        """Outputs of the chunk and the state after it; `state` is None at chunk 0 and must not be changed."""

    @abstractmethod
    def placeholder(self) -> Tensors:
        """The answer to a request that runs no engine: as small as the next stage accepts."""

    def frames_shape(self, frames: int) -> tuple[int, int, int, int, int]:
        return 1, frames, self.geometry.height, self.geometry.width, 3

    def empty_latent(self, frames: int = 1) -> np.ndarray:
        return np.zeros(self.geometry.latent_shape(Chunk(0, 0, frames, frames)), np.float32)

    def places(self, request: Request, state: S | None) -> Places:
        return Places(request.parameters, state.regions if state else (), self.memory)

    def latent_place(self, places: Places, chunk: Chunk) -> np.ndarray | None:
        """Where stages hand over the chunk's latents, if the client has room for that."""
        return places.find("latent", "float32", self.geometry.latent_shape(chunk))

    def made(self, values: Array, place: np.ndarray | None, nothing: np.ndarray) -> np.ndarray:
        """What is answered: the values, or nothing where they went to their place."""
        found = self.memory.download(values, place)
        return found if place is None else nothing


def step(feeds: State, state: State | None) -> Steps[tuple[Tensors, State]]:
    """Run the engine variant of this chunk over `feeds` and the carried state: all its outputs, and the new state."""
    if state is None:
        outputs = yield Call("first", feeds)
        return outputs, from_outputs(outputs)
    outputs = yield Call("steady", {**feeds, **as_inputs(state)})
    return outputs, {**state, **from_outputs(outputs)}


@dataclass(frozen=True)
class VAEState:
    """What a stream carries through a part of the VAE: state tensors by name, and its client's shared memory."""

    carried: State
    regions: Regions


class VAEStage(StatefulStage[VAEState]):
    """A stage with frames at one side."""

    def frames_place(self, places: Places, tensor: str, chunk: Chunk) -> np.ndarray | None:
        """Where the client wants the chunk's frames, if it named a place."""
        return places.find(tensor, "uint8", self.frames_shape(chunk.frames))


class VAEEncoderStage(VAEStage):
    """`frames` u8 (1, F, H, W, 3) to `source` f32 (1, C, T, h, w); either of none where the request names its place."""

    def advance(self, state: VAEState | None, chunk: Chunk, request: Request) -> Steps[tuple[Tensors, VAEState]]:
        places = self.places(request, state)
        lying, place = self.frames_place(places, "frames", chunk), self.latent_place(places, chunk)
        frames = request.tensor("frames", "uint8", self.frames_shape(chunk.frames), lying)
        # They cross to a GPU while the host prepares the rest.
        given = self.memory.upload(frames)
        outputs, carried = yield from step({"frames": given}, state.carried if state else None)
        source = self.made(outputs["source"], place, self.empty_latent(0))
        return {"source": source}, VAEState(carried, places.regions)

    def placeholder(self) -> Tensors:
        return {"source": self.empty_latent()}


class VAEDecoderStage(VAEStage):
    """`latent` f32 (1, C, T, h, w) to `edited` u8 (1, F, H, W, 3); either of none where the request names its place."""

    def advance(self, state: VAEState | None, chunk: Chunk, request: Request) -> Steps[tuple[Tensors, VAEState]]:
        places = self.places(request, state)
        lying, place = self.latent_place(places, chunk), self.frames_place(places, "edited", chunk)
        latent = request.tensor("latent", "float32", self.geometry.latent_shape(chunk), lying)
        outputs, carried = yield from step({"latent": latent}, state.carried if state else None)
        edited = self.made(outputs["edited"], place, np.empty(self.frames_shape(0), np.uint8))
        return {"edited": edited}, VAEState(carried, places.regions)

    def placeholder(self) -> Tensors:
        return {"edited": np.zeros(self.frames_shape(1), np.uint8)}


class TextEncoderStage:
    """`prompt` u8 (1, N), UTF-8 text, to `text` f32 (1, L, D) and `text_mask` f32 (1, L), remembering recent prompts.

    Where the stream's chunk before had the same prompt, `text` is (1, 0, D): the denoiser has it. `tokenize` maps a
    prompt to int64 (1, N) token ids and attention mask. The prompts are remembered here and not in the server's
    response cache, because a cached answer overtakes the chunks before it and breaks the stream's order.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        manifest: Manifest,
        tokenize: Callable[[bytes], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self._engine, self._tokenize = engines["prompt"], tokenize
        self._tokens, self._width = manifest.config["text"]["tokens"], manifest.config["text"]["width"]
        self._encode = lru_cache(PROMPTS_KEPT)(self._run_engine)
        self._told, self._streams = dict[str, tuple[object, bytes]](), manifest.streams

    def run_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Encode the prompts of chunks; a prompt that changes is rare, so they are encoded one after another."""
        return [attempt(partial(self.run, request)) for request in requests]

    def lap(self) -> Lap:
        return lap_of([self._engine])

    def run(self, request: Request) -> Tensors:
        """Encode the prompt of the chunk; a closing request is answered with zeros."""
        before = self._told.pop(request.correlation, None)
        if request.closing:
            return {"text": self._text(self._tokens), "text_mask": np.zeros((1, self._tokens), np.float32)}
        prompt, index = request.tensor("prompt", "uint8", (1, -1)).tobytes(), request.parameters.get("chunk")
        answer = dict(self._encode(prompt))
        self._tell(request, index, prompt)
        # A chunk that is sent again has its text again: the denoiser may not have seen it the first time.
        known = type(index) is int and before == (index - 1, prompt) and not request.start
        return answer | ({"text": self._text(0)} if known else {})

    def _tell(self, request: Request, index: object, prompt: bytes) -> None:
        """Remember what the denoiser has of this stream once it has seen the chunk."""
        if request.end or request.correlation in NOBODY:
            return
        self._told[request.correlation] = index, prompt
        if len(self._told) > self._streams:
            del self._told[next(iter(self._told))]

    def _text(self, tokens: int) -> np.ndarray:
        return np.zeros((1, tokens, self._width), np.float32)

    def _run_engine(self, prompt: bytes) -> Tensors:
        input_ids, attention_mask = self._tokenize(prompt)
        outputs = self._engine.run({"input_ids": input_ids, "attention_mask": attention_mask})
        return {name: self._engine.memory.download(outputs[name]) for name in ("text", "text_mask")}
