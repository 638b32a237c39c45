"""A stage as a model of Triton's python backend: a model.py says `TritonPythonModel = partial(StageModel, NAME)`."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

from sana_runtime import bridge
from sana_runtime.batching import Answer, attempt
from sana_runtime.clock import Lap
from sana_runtime.denoiser import DenoiserStage
from sana_runtime.engine import Engine, describe, load_engine
from sana_runtime.errors import RepositoryError, RequestError, choose
from sana_runtime.libraries import WHEELS, check_library
from sana_runtime.manifest import EngineEntry, Manifest
from sana_runtime.memory import local_architecture
from sana_runtime.prompts import PromptTokenizer
from sana_runtime.sessions import SessionTable
from sana_runtime.stages import Request, Stage, TextEncoderStage, VAEDecoderStage, VAEEncoderStage

START, END = 1, 2
"""Bits of a request's sequence flags."""

TOKENIZER = "tokenizer.json"

Engines = Mapping[str, Engine]


def _text_encoder(engines: Engines, manifest: Manifest, version: Path) -> Stage:
    text = manifest.config["text"]
    tokenizer = PromptTokenizer(version / TOKENIZER, text["chi"], text["tokens"])
    return TextEncoderStage(engines, manifest, tokenizer.encode)


STAGES: dict[str, Callable[[Engines, Manifest, Path], Stage]] = {
    "text_encoder": _text_encoder,
    "vae_encoder": lambda engines, manifest, _: VAEEncoderStage(engines, manifest),
    "denoiser": lambda engines, manifest, _: DenoiserStage(engines, manifest),
    "vae_decoder": lambda engines, manifest, _: VAEDecoderStage(engines, manifest),
}


def load_stage(name: str, repository: Path, version: str) -> Stage:
    """Load the stage `name` of a built repository; raises RepositoryError or EngineError if its files are not ours."""
    manifest = Manifest.read(repository)
    make = choose("stage", name, STAGES)
    manifest.check_files(repository, below=f"{name}/")
    entries = manifest.pick(name, local_architecture() if manifest.for_gpu else None)
    for backend in {entry.backend for entry in entries.values()} & WHEELS.keys():
        check_library(backend, manifest.versions[backend])
    engines = {variant: _load(repository, entry) for variant, entry in entries.items()}
    return make(engines, manifest, repository / name / version)


def _load(repository: Path, entry: EngineEntry) -> Engine:
    """The engine of `entry`; raises RepositoryError if its tensors are not the ones it was built with."""
    engine = load_engine(entry.backend, repository / entry.path)
    if describe(engine.inputs) != entry.inputs or describe(engine.outputs) != entry.outputs:
        raise RepositoryError(f"the tensors of {repository / entry.path} are not those of the manifest: build it again")
    return engine


class StageModel:
    """What the python backend drives; an answer is always given, an error being one sentence for the client."""

    def __init__(self, name: str) -> None:
        self.name = name

    def initialize(self, args: Mapping[str, str]) -> None:
        import triton_python_backend_utils as pb_utils

        self._pb = pb_utils
        self.stage = load_stage(self.name, Path(args["model_repository"]).parent, args["model_version"])
        # Loading runs engines too, which is no chunk's time.
        self.stage.lap()
        self.metrics = Metrics(pb_utils, self.name, getattr(self.stage, "sessions", None))

    def execute(self, requests: list[Any]) -> list[Any]:
        started = time.perf_counter()
        answers = [self._respond(answer) for answer in self._run(requests)]
        self.metrics.collect(len(requests), time.perf_counter() - started, self.stage.lap())
        return answers

    def finalize(self) -> None:
        self.metrics.close()
        del self.stage

    def _run(self, requests: list[Any]) -> list[Answer]:
        """An answer or an error for each; one faulty chunk must not end the process, which holds other streams."""
        parsed = [attempt(partial(parse, request)) for request in requests]
        sound = [request for request in parsed if isinstance(request, Request)]
        answers = iter(self.stage.run_batch(sound) if sound else [])
        return [next(answers) if isinstance(request, Request) else request for request in parsed]

    def _respond(self, answer: Answer) -> Any:
        if not isinstance(answer, Exception):
            return self._pb.InferenceResponse(self._tensors(answer))
        if isinstance(answer, RequestError):
            return self._error(str(answer), self._pb.TritonError.INVALID_ARG)
        self._pb.Logger.log_error(f"{self.name}: {type(answer).__name__}: {answer}")
        return self._error(f"{self.name} failed: {answer}", self._pb.TritonError.INTERNAL)

    def _tensors(self, outputs: Mapping[str, Any]) -> list[Any]:
        return [bridge.to_triton(self._pb, name, array) for name, array in outputs.items()]

    def _error(self, sentence: str, code: int) -> Any:
        return self._pb.InferenceResponse(error=self._pb.TritonError(sentence, code))


class Views(Mapping[str, np.ndarray]):
    """A request's tensors by name, as views that end with the answer; one that nobody asks for costs nothing."""

    def __init__(self, request: Any) -> None:
        self._tensors = {tensor.name(): tensor for tensor in request.inputs()}

    def __getitem__(self, name: str) -> np.ndarray:
        return bridge.to_numpy(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def parse(request: Any) -> Request:
    """The backend's request object as a `Request`."""
    flags = request.flags()
    return Request(
        tensors=Views(request),
        parameters=json.loads(request.parameters() or "{}"),
        correlation=str(request.correlation_id()),
        start=bool(flags & START),
        end=bool(flags & END),
    )


class Metrics:
    """Prometheus figures of one stage, published by a thread of its own.

    Each is a message to the server and back, which no chunk should wait for. The families are kept because the backend
    deletes a family nobody holds.
    """

    BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    PERIOD = 0.25
    """Seconds for which figures are collected: the thread is rarely at work while an answer goes out."""

    def __init__(self, pb_utils: Any, stage: str, sessions: SessionTable[Any] | None) -> None:
        kinds = pb_utils.MetricFamily
        labels = {"stage": stage}
        self._families = {
            "live": kinds("sana_streams_live", "Streams this stage holds state for.", kinds.GAUGE),
            "evicted": kinds("sana_streams_evicted", "Streams dropped for age or room.", kinds.GAUGE),
            "broken": kinds("sana_streams_broken", "Streams whose engine call failed.", kinds.GAUGE),
            "seconds": kinds("sana_chunk_seconds", "Time of one chunk in this stage.", kinds.HISTOGRAM),
            "engines": kinds("sana_engine_seconds", "Time of one chunk in this stage's engines.", kinds.HISTOGRAM),
        }
        self._counts = {name: self._families[name].Metric(labels=labels) for name in ("live", "evicted", "broken")}
        self._times = [
            self._families[name].Metric(labels=labels, buckets=list(self.BUCKETS)) for name in ("seconds", "engines")
        ]
        self._sessions, self._published = sessions, dict[str, int]()
        self._collected, self._closing = deque[tuple[float, Lap]](), Event()
        self._thread = Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def collect(self, chunks: int, seconds: float, engines: Lap) -> None:
        """Note the time of chunks that were answered together, and what engines worked on them."""
        self._collected.extend([(seconds, engines)] * chunks)

    def close(self) -> None:
        """Publish what is left, and end the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self.PERIOD):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        while self._collected:
            seconds, engines = self._collected.popleft()
            for times, value in zip(self._times, (seconds, engines()), strict=True):
                times.observe(value)
        if self._sessions is not None:
            found = {name: getattr(self._sessions, name) for name in self._counts}
            for name in [name for name, count in found.items() if self._published.get(name) != count]:
                self._counts[name].set(found[name])
            self._published = found
