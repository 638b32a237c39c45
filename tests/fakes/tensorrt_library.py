"""A stand-in for the runtime half of TensorRT-RTX: engines are JSON, memory is real, nothing is on a GPU.

It reads its inputs from and writes its outputs to the addresses it was given, runs only after all of them are set, and
compiles its kernels at the first run unless a cache of the same card has them.
"""

import ctypes
import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

CARD = b"card A\n"
KERNELS = CARD + b"kernels"

Program = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = torch.float32
    BF16 = torch.bfloat16
    INT64 = torch.int64
    UINT8 = torch.uint8


class Cache:
    def __init__(self) -> None:
        self.data = b""

    def deserialize(self, data: bytes) -> bool:
        if not data.startswith(CARD):
            return False
        self.data = data
        return True

    def serialize(self) -> memoryview:
        return memoryview(self.data)


class Config:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.cache: Cache | None = None

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> None:
        self.cache = cache


class Context:
    """Counts runs and compilations for the test."""

    def __init__(self, engine: "Engine", config: Config | None) -> None:
        self.engine, self.config = engine, config
        self.addresses: dict[str, int] = {}
        self.runs = self.compiled = 0

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        if self.addresses.keys() != self.engine.tensors.keys() or self.engine.failing:
            return False
        cache = self.config.cache if self.config else None
        if cache is None or not cache.data:
            self.compiled += 1
            if cache:
                cache.data = KERNELS
        self.runs += 1
        at = {name: self._view(name) for name in self.addresses}
        results = self.engine.program({name: at[name].clone() for name in self.engine.names("input")})
        for name in self.engine.names("output"):
            at[name].copy_(results[name])
        return True

    def _view(self, name: str) -> Tensor:
        _, dtype, shape = self.engine.tensors[name]
        torch_type = DataType[dtype].value
        size = math.prod(shape) * torch_type.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return torch.frombuffer(memory, dtype=torch_type).reshape(shape)


class Engine:
    def __init__(self, tensors: dict[str, list], program: Program) -> None:
        self.tensors, self.program, self.failing = tensors, program, False
        self.num_io_tensors = len(tensors)
        self.context: Context | None = None

    def names(self, kind: str) -> list[str]:
        return [name for name, (its_kind, *_) in self.tensors.items() if its_kind == kind]

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode[self.tensors[name][0].upper()]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.tensors[name][1]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.tensors[name][2]

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, config: Config | None = None) -> Context:
        self.context = Context(self, config)
        return self.context


class Library(SimpleNamespace):
    """What `import tensorrt_rtx` gives; `programs` are what engine files name, by which they compute."""

    def __init__(self, **programs: Program) -> None:
        super().__init__(
            __version__="1.7.1.116",
            Logger=Logger,
            CudaGraphStrategy=CudaGraphStrategy,
            TensorIOMode=TensorIOMode,
            Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=self.deserialize),
        )
        self.programs = programs
        self.plugins: set[str] = set()
        self.loaded: list[Engine] = []

    def deserialize(self, data: Any) -> Engine | None:
        raw = json.loads(bytes(data))
        if raw["program"] not in self.programs or not set(raw.get("plugins", [])) <= self.plugins:
            return None
        self.loaded.append(Engine(raw["tensors"], self.programs[raw["program"]]))
        return self.loaded[-1]


class Logger:
    WARNING = 2

    def __init__(self, level: int) -> None:
        self.level = level


def write_plan(path: Path, program: str, *plugins: str, **tensors: tuple[str, str, tuple[int, ...]]) -> Path:
    """An engine file; tensors are (kind, dtype, shape), and `__` in their names stands for a dot.

    It cannot be read before its `plugins` are registered.
    """
    dotted = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    path.write_text(json.dumps({"program": program, "plugins": plugins, "tensors": dotted}))
    return path
