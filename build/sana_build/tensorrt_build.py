"""One TensorRT engine from one ONNX file. Runs in a process of its own: TensorRT takes one logger per process."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sana_build.layer_table import EngineLayer, parse_layers
from sana_runtime.errors import BuildError, choose
from sana_runtime.libraries import WHEELS
from sana_runtime.tensorrt_engine import DTYPES

KINDS = ("input", "output")
NO_DRIVER = ("cudaError", "CUDA initialization", "CUDA driver")
"""What every machine without a GPU logs beside the real errors."""


@dataclass(frozen=True)
class TensorRTPlan:
    """A serialised engine as it was written: its tensors by name as "dtype[shape]", its layers, its size in bytes."""

    version: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    layers: tuple[EngineLayer, ...]
    bytes: int


def build_plan(onnx: Path, plan: Path, backend: str, sms: tuple[int, ...], log: Path) -> TensorRTPlan:
    """Compile `onnx` for the architectures `sms` into the file `plan`, with every message of the builder in `log`.

    Static shapes and strong typing: the precision of every layer is the one written in the graph. Classic TensorRT
    builds for the card of this machine. Raises BuildError with the builder's first error.
    """
    trt = load_library(backend)
    with log.open("w") as stream:
        logger = make_logger(trt, stream)
        builder = trt.Builder(logger)
        network = parse(trt, builder, logger, onnx)
        size = _serialise(trt, builder, network, _config(trt, builder, sms), logger, plan)
    inputs, outputs = ({tensor.name: _describe(tensor) for tensor in _tensors(network, kind)} for kind in KINDS)
    return TensorRTPlan(trt.__version__, inputs, outputs, parse_layers(logger.tables), size)


def load_library(backend: str) -> ModuleType:
    """The TensorRT module called `backend`; raises BuildError saying what to install."""
    wheel = choose("engine backend", backend, WHEELS)
    try:
        return importlib.import_module(backend)
    except ImportError as error:
        raise BuildError(f"{backend} is not installed ({error}): run `pip install {wheel}`") from error


def library_version(backend: str) -> str:
    version: str = load_library(backend).__version__
    return version


def make_logger(trt: Any, stream: Any) -> Any:
    """A TensorRT logger that writes to `stream`, and keeps errors and layer tables at hand."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.tables: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            stream.write(f"{message}\n")
            if message.startswith("Layers:"):
                self.tables.append(message)
            if severity <= trt.ILogger.Severity.ERROR and not any(part in message for part in NO_DRIVER):
                self.errors.append(message)

    return Logger()


def parse(trt: Any, builder: Any, logger: Any, onnx: Path) -> Any:
    """The network of an ONNX file, external data included; raises BuildError with the parser's reason."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BuildError(f"TensorRT cannot read {onnx.name}: {'; '.join(reasons or logger.errors)}")
    return network


def _config(trt: Any, builder: Any, sms: tuple[int, ...]) -> Any:
    config = builder.create_builder_config()
    # The layer table is logged in full at this level only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # The recurrence of the GDN state is FP32 because it runs over a whole stream.
    config.clear_flag(trt.BuilderFlag.TF32)
    # Every layer fills the card; side streams would only cut the engine into pieces that wait for each other.
    config.max_aux_streams = 0
    if hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = len(sms)
        for index, sm in enumerate(sms):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    return config


def _serialise(trt: Any, builder: Any, network: Any, config: Any, logger: Any, plan: Path) -> int:
    """Write the engine to `plan` as it is made, and return its size in bytes."""
    with plan.open("wb") as stream, _writer(trt, stream) as writer:
        done = builder.build_serialized_network_to_stream(network, config, writer)
    if not done:
        raise BuildError(f"TensorRT cannot build {plan.stem}: {(logger.errors or ['it gives no reason'])[0]}")
    return plan.stat().st_size


@contextmanager
def _writer(trt: Any, stream: Any) -> Iterator[Any]:
    """TensorRT's view of an open file; an error of the file is raised when the block ends, not inside TensorRT."""
    failures: list[OSError] = []

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: Any) -> int:
            try:
                return int(stream.write(data))
            except OSError as error:
                failures.append(error)
                return 0

    yield Writer()
    if failures:
        raise failures[0]


def _tensors(network: Any, kind: str) -> Iterator[Any]:
    return (getattr(network, f"get_{kind}")(index) for index in range(getattr(network, f"num_{kind}s")))


def _describe(tensor: Any) -> str:
    return f"{DTYPES[tensor.dtype.name]}[{','.join(map(str, tensor.shape))}]"
