"""Engines: a compiled stage variant as a function from named tensors to named tensors."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sana_runtime.errors import EngineError, choose


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and static shape of one engine tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def refusal(self, array: np.ndarray) -> str | None:
        """Why `array` cannot be this tensor, or None if it can."""
        if array.dtype != np.dtype(self.dtype):
            return f"tensor {self.name} has dtype {array.dtype}, the engine takes {self.dtype}"
        if array.shape != self.shape:
            return f"tensor {self.name} has shape {list(array.shape)}, the engine takes {list(self.shape)}"
        return None


def describe(specs: "tuple[TensorSpec, ...]") -> dict[str, str]:
    """Tensors as a manifest lists them."""
    return {spec.name: str(spec) for spec in specs}


class Engine(Protocol):
    """A loaded engine; it holds no state between calls."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate once. Raises EngineError naming the tensor that is missing, unknown or misshapen."""
        ...


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, np.ndarray]) -> None:
    """Raise EngineError unless `feeds` holds exactly the tensors of `specs`."""
    expected = {spec.name for spec in specs}
    missing, unknown = sorted(expected - feeds.keys()), sorted(feeds.keys() - expected)
    if missing or unknown:
        raise EngineError(f"engine inputs do not match: missing {missing or 'none'}, unknown {unknown or 'none'}")
    for spec in specs:
        if reason := spec.refusal(feeds[spec.name]):
            raise EngineError(reason)


class OnnxRuntimeEngine:
    """An ONNX file on the onnxruntime CPU provider, on every core the process may use."""

    DTYPES = {  # noqa: RUF012
        "tensor(float)": "float32",
        "tensor(int64)": "int64",
        "tensor(uint8)": "uint8",
        "tensor(int32)": "int32",
    }

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

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

    def _spec(self, node) -> TensorSpec:  # type: ignore[no-untyped-def]
        return TensorSpec(node.name, self.DTYPES[node.type], tuple(node.shape))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


ENGINES: dict[str, Callable[[Path], Engine]] = {"onnxruntime": OnnxRuntimeEngine}


def load_engine(backend: str, path: Path) -> Engine:
    """Load an engine file with the named backend; the error lists the backends there are."""
    return choose("engine backend", backend, ENGINES)(path)
