"""Engines of TensorRT-RTX, and of classic TensorRT, which has the same interface; their tensors live on the GPU.

Written from the library's documented interface and tested against a stand-in: no run on a GPU has confirmed it yet.
"""

import hashlib
import importlib
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sana_runtime.engine import OneByOne, check_feeds
from sana_runtime.errors import EngineError
from sana_runtime.memory import Array, TorchMemory
from sana_runtime.packages import import_beside
from sana_runtime.tensors import TensorSpec

DTYPES = {
    "FLOAT": "float32",
    "BF16": "bfloat16",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
}
"""The library's dtype names, and those of numpy and torch."""

NAMED_BY = 1 << 20
"""Bytes of an engine file that its kernel cache is named by."""


LAYERS = ".layers.json"
"""Suffix of the table of an engine's layers, which a build writes beside the engine."""

CUSTOM = "custom_layer"
PLUGIN = "sana_kernels.plugin"


class TensorRTEngine(OneByOne):
    """An engine file whose tensors have fixed places on the GPU, so that one captured CUDA graph serves every call.

    The kernels of an RTX engine are compiled when it first runs on a card; they are kept in the user's cache folder.
    """

    def __init__(self, path: Path, library: str, memory: TorchMemory | None = None, cache: Path | None = None) -> None:
        trt = importlib.import_module(library)
        self.path, self.memory = path, memory or TorchMemory("cuda")
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._load()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        reads = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(self._spec(name) for name in names if reads[name])
        self.outputs = tuple(self._spec(name) for name in names if not reads[name])
        self._buffers = {spec.name: self.memory.zeros(spec) for spec in (*self.inputs, *self.outputs)}
        self._start(trt, cache or kernel_caches())

    def _load(self) -> Any:
        if holds_plugin(self.path):
            register_plugin(self.path)
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._name = hashlib.sha256(data[:NAMED_BY]).hexdigest()[:16]
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(
                f"engine {self.path} cannot be loaded on this machine: its GPU or driver is not one it was built for, "
                f"see the server's log"
            )
        return engine

    def _spec(self, name: str) -> TensorSpec:
        dtype = DTYPES[self._engine.get_tensor_dtype(name).name]
        return TensorSpec(name, dtype, tuple(self._engine.get_tensor_shape(name)))

    def _start(self, trt: Any, caches: Path) -> None:
        """Make the context and run it once, which compiles the kernels and captures the graph before any stream."""
        if hasattr(trt, "CudaGraphStrategy"):
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            kernels = KernelCache(config.create_runtime_cache(), caches / f"{self._name}-{self.memory.card()}.bin")
            kernels.load()
            config.set_runtime_cache(kernels.cache)
            self._context = self._engine.create_execution_context(config)
            self._bind()
            self._execute()
            kernels.save()
        else:
            self._context = self._engine.create_execution_context()
            self._bind()
            self._execute()

    def _bind(self) -> None:
        for name, buffer in self._buffers.items():
            self._context.set_tensor_address(name, buffer.data_ptr())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Evaluate once; feeds are numpy arrays or tensors on the GPU, outputs are tensors on the GPU.

        Raises EngineError naming the tensor that is missing, unknown or misshapen.
        """
        check_feeds(self.inputs, feeds)
        with self.memory.stream():
            for spec in self.inputs:
                self._buffers[spec.name].copy_(self.memory.as_tensor(feeds[spec.name]))
            self._execute()
            # The buffers are written again by the next call, and state has to outlive it.
            return {spec.name: self._buffers[spec.name].clone() for spec in self.outputs}

    def _execute(self) -> None:
        with self.memory.stream() as stream, self.memory.working():
            if not self._context.execute_async_v3(stream):
                raise EngineError(f"engine {self.path} failed on the GPU: see the server's log")


def holds_plugin(engine: Path) -> bool:
    """Whether layers of the engine are a plugin, which the library has to know before it reads the file."""
    table = engine.with_suffix(LAYERS)
    return table.is_file() and any(layer["type"] == CUSTOM for layer in json.loads(table.read_text()))


def register_plugin(engine: Path) -> None:
    """Make our plugin known to this process; raises EngineError if it is not there, or refuses the machine."""
    plugin = import_beside(engine, "our GDN plugin", PLUGIN)
    try:
        plugin.register()
    except (ImportError, ValueError) as error:
        raise EngineError(f"the GDN plugin that engine {engine} holds cannot be registered: {error}") from error


class KernelCache:
    """The compiled kernels of one engine on one card, in a file; the library refuses a file of another card or driver.

    Losing the file costs the compilation, never a result.
    """

    def __init__(self, cache: Any, path: Path) -> None:
        self.cache, self.path = cache, path
        self._loaded = b""

    def load(self) -> None:
        if self.path.is_file():
            data = self.path.read_bytes()
            self._loaded = data if self.cache.deserialize(data) else b""

    def save(self) -> None:
        """Write what was compiled since it was loaded; a folder that cannot be written is left alone."""
        data = bytes(self.cache.serialize())
        if data == self._loaded:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(f".{os.getpid()}")
            partial.write_bytes(data)
            partial.replace(self.path)


def kernel_caches() -> Path:
    """`$XDG_CACHE_HOME/sana-runtime`, which is `~/.cache/sana-runtime` where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sana-runtime"
