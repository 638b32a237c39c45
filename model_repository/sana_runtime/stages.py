"""The stages of a stream over loaded engines: one request in, one answer out, state kept by correlation id."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from sana_runtime.batching import Answer, Call, State, Steps, Tensors, attempt, together
from sana_runtime.engine import Engine
from sana_runtime.errors import RequestError
from sana_runtime.geometry import Chunk, StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.sessions import SessionTable
from sana_runtime.state import as_inputs, from_outputs

S = TypeVar("S")

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

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The input `name`, of which `shape` may leave sizes open as -1; raises RequestError saying what it must be."""
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


class StatefulStage(ABC, Generic[S]):
    """A stage that carries state `S` from chunk to chunk of a stream."""

    def __init__(
        self, engines: Mapping[str, Engine], manifest: Manifest, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.engines = engines
        self.memory = next(iter(engines.values())).memory
        self.geometry: StreamGeometry = manifest.geometry
        self.sessions: SessionTable[S] = SessionTable(manifest.streams, manifest.idle_seconds, clock)

    def run(self, request: Request) -> Tensors:
        """Answer one request. Raises RequestError if it is at fault, any other error if the engine failed."""
        (answer,) = self.run_batch([request])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests of different streams, whose engine calls run together where they are the same."""
        return together(self.engines, [self._answer(request) for request in requests])

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

    def empty_latent(self) -> np.ndarray:
        return np.zeros(self.geometry.latent_shape(Chunk(0, 0, 1, 1)), np.float32)


def step(feeds: State, state: State | None) -> Steps[tuple[Tensors, State]]:
    """Run the engine variant of this chunk over `feeds` and the carried state: all its outputs, and the new state."""
    if state is None:
        outputs = yield Call("first", feeds)
        return outputs, from_outputs(outputs)
    outputs = yield Call("steady", {**feeds, **as_inputs(state)})
    return outputs, {**state, **from_outputs(outputs)}


class VAEEncoderStage(StatefulStage[State]):
    """`frames` u8 (1, F, H, W, 3) to `source` f32 (1, C, T, h, w)."""

    def advance(self, state: State | None, chunk: Chunk, request: Request) -> Steps[tuple[Tensors, State]]:
        frames = request.tensor("frames", "uint8", self.frames_shape(chunk.frames))
        outputs, state = yield from step({"frames": frames}, state)
        return {"source": self.memory.download(outputs["source"])}, state

    def placeholder(self) -> Tensors:
        return {"source": self.empty_latent()}


class VAEDecoderStage(StatefulStage[State]):
    """`latent` f32 (1, C, T, h, w) to `edited` u8 (1, F, H, W, 3)."""

    def advance(self, state: State | None, chunk: Chunk, request: Request) -> Steps[tuple[Tensors, State]]:
        latent = request.tensor("latent", "float32", self.geometry.latent_shape(chunk))
        outputs, state = yield from step({"latent": latent}, state)
        return {"edited": self.memory.download(outputs["edited"])}, state

    def placeholder(self) -> Tensors:
        return {"edited": np.zeros(self.frames_shape(1), np.uint8)}


class TextEncoderStage:
    """`prompt` u8 (1, N), UTF-8 text, to `text` f32 (1, L, D) and `text_mask` f32 (1, L), remembering recent prompts.

    `tokenize` maps a prompt to int64 (1, N) token ids and attention mask. The prompts are remembered here and not in
    the server's response cache, because a cached answer overtakes the chunks before it and breaks the stream's order.
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

    def run_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Encode the prompts of chunks; a prompt that changes is rare, so they are encoded one after another."""
        return [attempt(partial(self.run, request)) for request in requests]

    def run(self, request: Request) -> Tensors:
        """Encode the prompt of the chunk; a closing request is answered with zeros."""
        if request.closing:
            return {
                "text": np.zeros((1, self._tokens, self._width), np.float32),
                "text_mask": np.zeros((1, self._tokens), np.float32),
            }
        return dict(self._encode(request.tensor("prompt", "uint8", (1, -1)).tobytes()))

    def _run_engine(self, prompt: bytes) -> Tensors:
        input_ids, attention_mask = self._tokenize(prompt)
        outputs = self._engine.run({"input_ids": input_ids, "attention_mask": attention_mask})
        return {name: self._engine.memory.download(outputs[name]) for name in ("text", "text_mask")}
