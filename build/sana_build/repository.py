"""Packaging: engines, model folders and runtime become one Triton model repository with a manifest over every file."""

import hashlib
import importlib
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sana_build.bundle import SERVER_VERSION
from sana_runtime.errors import BuildError, RepositoryError
from sana_runtime.manifest import MANIFEST, Manifest, sha256
from sana_runtime.regions import PREFIX

if TYPE_CHECKING:
    from google.protobuf.message import Message

ENSEMBLE = "sana_streaming"
MODELS = ("text_encoder", "vae_encoder", "denoiser", "vae_decoder", ENSEMBLE)
RUNTIME = "sana_runtime"
CONFIG = "config.pbtxt"

BATCHED = {("denoiser", "torch"): 8}
"""Stages and engine backends that take several streams in one call, and how many.

The others compute them in turn, and an answer must not wait for those of other streams.
"""

NEWER_FIELDS = {"inference.ModelConfig.model_metrics", "inference.ModelEnsembling.max_inflight_requests"}
"""Fields of tritonclient 2.73's schema that server 2.51 does not know (the two schemas compared)."""


def package(
    staging: Path, manifest: Manifest, known: Mapping[str, str] | None = None, packages: Iterable[str] = ()
) -> Manifest:
    """Complete `staging`, which holds the engines and the tokenizer, to a repository; returns its manifest.

    `known` are hashes of large files that need no second reading, `packages` of ours what engines need beside the
    runtime. Raises BuildError if an engine is missing or a configuration would not load.
    """
    for stage, variant, entry in manifest.every_engine():
        if not (staging / entry.path).is_file():
            raise BuildError(f"engine {stage}/{variant} is missing at {staging / entry.path}: build it first")
    for name in (RUNTIME, *packages):
        write_package(name, staging / f"{name}.zip")
    digests = {name: sha256(staging / name) for name in _files(staging) if name not in (known or {})} | dict(
        known or {}
    )
    build_id = _build_id(digests)
    for model in MODELS:
        shutil.copytree(templates() / model, staging / model, dirs_exist_ok=True, ignore=_no_caches)
        write_config(staging / model / CONFIG, manifest, build_id)
        if model != ENSEMBLE and not (staging / model / "1" / "model.py").is_file():
            # The server would wait for ever on such a model.
            raise BuildError(f"the template of {model} has no 1/model.py: install sana-build again")
    files = {name: digests.get(name) or sha256(staging / name) for name in _files(staging)}
    complete = replace(manifest, files=files)
    complete.write(staging)
    return complete


def check_repository(repository: Path) -> Manifest:
    """The manifest of a repository that is exactly as it was built; raises RepositoryError for the first difference."""
    manifest = Manifest.read(repository)
    manifest.check_files(repository)
    # Triton takes every folder for a model and the highest number for its version, so additions count as edits.
    if extra := sorted(set(_files(repository)) - manifest.files.keys()):
        raise RepositoryError(f"{repository / extra[0]} was added after the build: remove it or build again")
    folders = {path.name for path in repository.iterdir() if path.is_dir()}
    if folders != set(MODELS):
        names = ", ".join(sorted(folders ^ set(MODELS)))
        raise RepositoryError(f"{repository} should hold the models {', '.join(MODELS)}, which differs in: {names}")
    return manifest


def templates() -> Path:
    """The folder of the committed model folders, in a wheel or in a checkout."""
    package = Path(__file__).parent
    installed = package / "model_repository"
    return installed if installed.is_dir() else package.parents[1] / "model_repository"


def write_config(path: Path, manifest: Manifest, build_id: str) -> None:
    """Fill the template at `path` with the sizes of the build, through the schema of the server."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise BuildError(f"{path} is not a model configuration: {error}") from error
    dims = tensor_dims(manifest)
    for tensor in (*config.input, *config.output):
        tensor.dims[:] = dims[tensor.name]
    if config.HasField("sequence_batching"):
        config.max_batch_size = batch_size(manifest, config.name)
        config.sequence_batching.oldest.max_candidate_sequences = manifest.streams
        config.sequence_batching.max_sequence_idle_microseconds = int(manifest.idle_seconds * 1e6)
    if config.name == ENSEMBLE:
        for name, value in stream_parameters(manifest, build_id).items():
            config.parameters[name].string_value = str(value)
    check_config(config)
    path.write_text(text_format.MessageToString(config))


def batch_size(manifest: Manifest, stage: str) -> int:
    """Chunks of different streams that a stage may be given at once."""
    backends = {entry.backend for entries in manifest.engines[stage].values() for entry in entries}
    return min([manifest.streams, *(BATCHED.get((stage, backend), 1) for backend in backends)])


def check_config(config: Any) -> None:
    """Refuse what server 2.51 rejects or silently ignores; raises BuildError naming the field."""
    for field in _fields(config):
        if field in NEWER_FIELDS:
            raise BuildError(f"model {config.name}: server {SERVER_VERSION} does not know the field {field}, remove it")
    if config.backend == "python" and config.sequence_batching.state:
        raise BuildError(f"model {config.name}: the python backend drops `state` silently, keep it in the model")


def tensor_dims(manifest: Manifest) -> dict[str, list[int]]:
    """Dimensions of every wire tensor without the batch dimension.

    Frames and prompt bytes of a chunk stay open, and the tokens of the text, which has none if it is known already.
    """
    geometry, text = manifest.geometry, manifest.config["text"]
    frames = [-1, geometry.height, geometry.width, 3]
    latent = [geometry.latent_channels, -1, geometry.latent_height, geometry.latent_width]
    return {
        "frames": frames,
        "edited": frames,
        "prompt": [-1],
        "text": [-1, text["width"]],
        "text_mask": [text["tokens"]],
        "source": latent,
        "latent": latent,
    }


def stream_parameters(manifest: Manifest, build_id: str) -> dict[str, Any]:
    """What a client reads from the ensemble's configuration."""
    geometry = manifest.geometry
    names = ("first_frames", "steady_frames", "height", "width", "max_chunks")
    sizes = {name: getattr(geometry, name) for name in names}
    latent = max(prod(geometry.latent_shape(geometry.chunk(index))) for index in (0, 1))
    places = {"regions": PREFIX, "latent_bytes": latent * np.dtype(np.float32).itemsize}
    return sizes | {"model": manifest.model, "build": build_id} | places


def _fields(message: "Message") -> Iterator[str]:
    """Full names of the fields that are set anywhere in `message`."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        yield field.full_name
        entries = value.values() if hasattr(value, "values") else value if field.is_repeated else [value]
        for entry in entries:
            if isinstance(entry, Message):
                yield from _fields(entry)


def write_package(name: str, path: Path) -> None:
    """The modules of an installed package as a zip file whose bytes depend on them alone."""
    root = Path(str(importlib.import_module(name).__file__)).parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for module in sorted(root.rglob("*.py")):
            entry = zipfile.ZipInfo(str(module.relative_to(root.parent)), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, module.read_bytes())


def _build_id(digests: Mapping[str, str]) -> str:
    """Short hash over engines, tokenizer and runtime: two builds that answer alike share it."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _files(repository: Path) -> list[str]:
    """Relative names of all files but the manifest and byte code that Python wrote."""
    paths = (path for path in sorted(repository.rglob("*")) if path.is_file() and path.parent.name != "__pycache__")
    return [name for path in paths if (name := path.relative_to(repository).as_posix()) != MANIFEST]


def _no_caches(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]
