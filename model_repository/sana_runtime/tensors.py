"""What an engine says about its tensors."""

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype name as numpy and torch have it, and static shape of one engine tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def refusal(self, array: Any) -> str | None:
        """Why a numpy array or torch tensor cannot be this tensor, or None if it can."""
        if (dtype := dtype_name(array)) != self.dtype:
            return f"tensor {self.name} has dtype {dtype}, the engine takes {self.dtype}"
        if array.shape != self.shape:
            return f"tensor {self.name} has shape {list(array.shape)}, the engine takes {list(self.shape)}"
        return None


def dtype_name(array: Any) -> str:
    """`float32`, `bfloat16` and so on, of a numpy array or a torch tensor."""
    return _name(array.dtype)


@cache
def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
