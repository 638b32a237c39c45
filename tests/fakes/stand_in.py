"""A repository of any frame size that computes next to nothing, so that the time of a chunk is that of its transport.

Its engines stand in for those of a GPU. They take and make tensors of the real shapes, in memory that is there already,
and carry the corners of every frame, inverted, from the first to the last. Told how long the real ones take, they keep
the one GPU that all of them share busy for so long, one after another.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import numpy as np

from sana_runtime.engine import ENGINES, OneByOne, TensorSpec, check_feeds, describe
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import EngineEntry, Manifest, sha256
from sana_runtime.memory import HostMemory
from sana_runtime.turns import FileTurn, Turn

BACKEND = "stand_in"
TOKENS, WIDTH = 300, 2304
"""Positions and width of the released model's text, which crosses the server with every chunk."""

SLOTS = 3
"""Recent chunks that the released model's window holds."""

SIDES = "inputs", "outputs"
STAGES = {
    "text_encoder": ("prompt",),
    "vae_encoder": ("first", "steady"),
    "denoiser": ("prompt", "first", "steady"),
    "vae_decoder": ("first", "steady"),
}

MODEL = """import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "sana_runtime.zip"), {tests!r}]

from fakes.stand_in import register
from sana_runtime.triton_backend import StageModel

register()

TritonPythonModel = partial(StageModel, {stage!r})
"""

Specs = tuple[TensorSpec, ...]
Arrays = dict[str, np.ndarray]
Seconds = Mapping[str, Mapping[str, float]]
"""How long the engines take, by stage and variant."""


def specs(geometry: StreamGeometry, ids: int, stage: str, variant: str) -> tuple[Specs, Specs]:
    """Inputs and outputs of an engine; token ids are `ids` long."""
    chunk = geometry.chunk(int(variant == "steady"))
    pixels = "uint8", (1, chunk.frames, geometry.height, geometry.width, 3)
    latent = "float32", geometry.latent_shape(chunk)
    text = {"text": ("float32", (1, TOKENS, WIDTH)), "text_mask": ("float32", (1, TOKENS))}
    tokens = dict.fromkeys(("input_ids", "attention_mask"), ("int64", (1, ids)))
    key = {"text_k": ("float32", (1, 1))}
    position = {"frame_start": ("int64", (1,)), "recent_valid": ("float32", (1, SLOTS))}
    chunks = {"noise": latent, "source": latent} | key | (position if variant == "steady" else {})
    sides = {
        "text_encoder": (tokens, text),
        "vae_encoder": ({"frames": pixels}, {"source": latent}),
        "denoiser": (text, key) if variant == "prompt" else (chunks, {"latent": latent}),
        "vae_decoder": ({"latent": latent}, {"edited": pixels}),
    }
    inputs, outputs = (tuple(TensorSpec(name, *spec) for name, spec in side.items()) for side in sides[stage])
    return inputs, outputs


class Card(HostMemory):
    """The memory of the pretended GPU, on which stages take turns: a download waits until what was launched is done."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._done = path, 0.0

    def new_turn(self) -> Turn:
        return FileTurn(self._path)

    def launch(self, seconds: float) -> None:
        self._done = max(self._done, time.perf_counter()) + seconds

    def download(self, array: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        time.sleep(max(0.0, self._done - time.perf_counter()))
        return super().download(array, into)


card = cache(Card)


class StandIn(OneByOne):
    """An engine from the file of `write_stand_in`."""

    def __init__(self, path: Path) -> None:
        about = json.loads(path.read_text())
        self.inputs, self.outputs = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in about[side]) for side in SIDES
        )
        self._seconds, self.memory = about["seconds"], card(path.parents[2] / "gpu")
        self._made = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in self.outputs}

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        check_feeds(self.inputs, feeds)
        with self.memory.working():
            self.memory.launch(self._seconds)
        if "frames" in feeds:
            seen = 255 - corners(feeds["frames"])
            self._made["source"].reshape(-1)[: seen.size] = seen.reshape(-1)
        elif "source" in feeds:
            np.copyto(self._made["latent"], feeds["source"])
        elif "latent" in feeds:
            shown = corners(self._made["edited"])
            shown[...] = feeds["latent"].reshape(-1)[: shown.size].reshape(shown.shape)
        return dict(self._made)


def register() -> None:
    """Let this process load stand-ins as it loads engines."""
    ENGINES[BACKEND] = StandIn


def corners(frames: np.ndarray) -> np.ndarray:
    """Of frames (1, F, H, W, 3): (F, 2, 2), the red of the pixels at the corners, as a view."""
    return frames[0, :, :: frames.shape[2] - 1, :: frames.shape[3] - 1, 0]


def write_stand_in(path: Path, geometry: StreamGeometry, streams: int = 8, seconds: Seconds | None = None) -> Manifest:
    """Package the stand-in at `path`."""
    from fakes.tiny_engines import CHI, tokenizer
    from sana_build.repository import package

    ids = len(CHI.split()) + 1 + TOKENS - 2
    engines: dict[str, dict[str, list[EngineEntry]]] = {}
    for stage, variants in STAGES.items():
        for variant in variants:
            sides = specs(geometry, ids, stage, variant)
            file = path / stage / "1" / f"{variant}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            about = {name: [astuple(spec) for spec in side] for name, side in zip(SIDES, sides, strict=True)}
            file.write_text(json.dumps(about | {"seconds": (seconds or {}).get(stage, {}).get(variant, 0.0)}))
            entry = EngineEntry(str(file.relative_to(path)), BACKEND, *map(describe, sides), error={})
            engines.setdefault(stage, {})[variant] = [entry]
    (path / "text_encoder" / "1" / "tokenizer.json").write_text(json.dumps(tokenizer()))
    (path / "gpu").touch()
    manifest = Manifest(
        "stand-in", "cpu", "none", "none", "none", geometry, 4, streams, 60.0, engines, {},
        {"text": {"tokens": TOKENS, "width": WIDTH, "chi": CHI}},
    )  # fmt: skip
    return with_backend(path, package(path, manifest))


def with_backend(path: Path, manifest: Manifest) -> Manifest:
    """The repository with models that know the stand-in, which the product does not."""
    written = {}
    for stage in STAGES:
        file = path / stage / "1" / "model.py"
        file.write_text(MODEL.format(tests=str(Path(__file__).parents[1]), stage=stage))
        written[str(file.relative_to(path))] = sha256(file)
    complete = replace(manifest, files=manifest.files | written)
    complete.write(path)
    return complete
