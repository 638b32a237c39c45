"""Engines: a compiled stage variant as a function from named tensors to named tensors."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sana_runtime.clock import Lap
from sana_runtime.errors import EngineError, choose
from sana_runtime.memory import Array, HostMemory, Memory
from sana_runtime.packages import import_beside
from sana_runtime.tensors import TensorSpec

__all__ = [
    "ENGINES",
    "Engine",
    "OneByOne",
    "OnnxRuntimeEngine",
    "TensorSpec",
    "check_feeds",
    "describe",
    "lap_of",
    "load_engine",
]


def describe(specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Tensors as a manifest lists them."""
    return {spec.name: str(spec) for spec in specs}


class Engine(Protocol):
    """A loaded engine; it holds no state between calls.

    `memory` is where it computes: what it returns is there, and what it is fed may be there or be a numpy array.
    """

    @property
    def memory(self) -> Memory: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate once. Raises EngineError naming the tensor that is missing, unknown or misshapen."""
        ...

    def run_batch(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Evaluate for several streams. Raises what `run` raises for any of them."""
        ...


class OneByOne:
    """For engines that are built for one stream."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise NotImplementedError

    def run_batch(self, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        return [self.run(one) for one in feeds]


def lap_of(engines: Iterable[Engine]) -> Lap:
    """What engines worked since this was last asked."""
    laps = [engine.memory.clock.lap() for engine in engines]
    return lambda: sum(lap() for lap in laps)


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Raise EngineError unless `feeds` holds exactly the tensors of `specs`."""
    expected = {spec.name for spec in specs}
    if feeds.keys() != expected:
        missing, unknown = sorted(expected - feeds.keys()), sorted(feeds.keys() - expected)
        raise EngineError(f"engine inputs do not match: missing {missing or 'none'}, unknown {unknown or 'none'}")
    for spec in specs:
        if reason := spec.refusal(feeds[spec.name]):
            raise EngineError(reason)


class OnnxRuntimeEngine(OneByOne):
    """An ONNX file on the onnxruntime CPU provider, on every core the process may use."""

    DTYPES = {  # noqa: RUF012
        "tensor(float)": "float32",
        "tensor(int64)": "int64",
        "tensor(uint8)": "uint8",
        "tensor(int32)": "int32",
    }

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        self.memory = HostMemory()
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        # Three stages share the cores: a pool that spins while it waits would slow the other two.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(f"engine {path} cannot be loaded by onnxruntime: {error}") from error
        self.inputs = tuple(self._spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(self._spec(node) for node in self._session.get_outputs())

    def _spec(self, node: Any) -> TensorSpec:
        return TensorSpec(node.name, self.DTYPES[node.type], tuple(node.shape))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        check_feeds(self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        with self.memory.working():
            found = self._session.run(names, dict(feeds))
        return dict(zip(names, found, strict=True))


def _tensorrt(library: str) -> Callable[[Path], Engine]:
    def load(path: Path) -> Engine:
        from sana_runtime.tensorrt_engine import TensorRTEngine

        return TensorRTEngine(path, library)

    return load


def _torch(path: Path) -> Engine:
    return import_beside(path, "our kernels", "sana_gpu.load", "sana_kernels").load(path)


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "tensorrt_rtx": _tensorrt("tensorrt_rtx"),
    "tensorrt": _tensorrt("tensorrt"),
    "torch": _torch,
}


def load_engine(backend: str, path: Path) -> Engine:
    """Load an engine file with the named backend; the error lists the backends there are."""
    return choose("engine backend", backend, ENGINES)(path)
