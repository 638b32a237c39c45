"""What the kernels take, checked before a launch."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from sana_kernels.errors import KernelError
from sana_kernels.problem import WIDEST

PRECISIONS = ("fp32", "tf32", "bf16")
TOKEN_TYPES = (torch.float32, torch.bfloat16, torch.float16)

DIMENSIONS = {
    "b": "batch rows",
    "h": "heads",
    "t": "frames",
    "s": "tokens per frame",
    "n": "tokens",
    "k": "key channels",
    "v": "value channels",
    "c": "channels",
}
"""What the letters of a layout stand for."""


def check_precision(op: str, precision: str) -> None:
    if precision not in PRECISIONS:
        raise KernelError(f"{op}: unknown precision {precision!r}, choose one of {', '.join(PRECISIONS)}")


def check_shapes(
    op: str, tensors: Mapping[str, Tensor], layouts: Mapping[str, str], known: Mapping[str, int] = MappingProxyType({})
) -> dict[str, int]:
    """The size of every letter; raises KernelError at the first tensor that contradicts what is known before it."""
    sizes = dict(known)
    for name, layout in layouts.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != len(layout):
            wanted = ", ".join(DIMENSIONS[letter] for letter in layout)
            raise KernelError(f"{op}: {name} has shape {shape}, expected ({wanted})")
        for letter, size in zip(layout, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise KernelError(f"{op}: {name} has shape {shape}, expected {sizes[letter]} {DIMENSIONS[letter]}")
            if size == 0:
                raise KernelError(f"{op}: {name} has shape {shape}, without any {DIMENSIONS[letter]}")
    return sizes


def check_width(op: str, name: str, width: int) -> None:
    if width > WIDEST:
        raise KernelError(f"{op}: {name} has heads of {width} channels, the kernels take at most {WIDEST}")


def check_types(op: str, tensors: Mapping[str, Tensor], tokens: Iterable[str], states: Iterable[str]) -> None:
    """Token tensors share one floating type, states are float32, and all live on one device."""
    kind, device = None, None
    for name in tokens:
        kind = kind or tensors[name].dtype
        if tensors[name].dtype != kind or kind not in TOKEN_TYPES:
            raise KernelError(f"{op}: {name} is {tensors[name].dtype}, expected {_names({kind} & set(TOKEN_TYPES))}")
    for name in states:
        if tensors[name].dtype != torch.float32:
            raise KernelError(f"{op}: {name} is {tensors[name].dtype}, expected torch.float32")
    for name, tensor in tensors.items():
        device = device or tensor.device
        if tensor.device != device:
            raise KernelError(f"{op}: {name} is on {tensor.device}, but the others are on {device}")


def _names(kinds: Iterable[torch.dtype]) -> str:
    return ", ".join(str(kind) for kind in kinds) or ", ".join(str(kind) for kind in TOKEN_TYPES)


def check_contiguous(op: str, tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    for name in names:
        if not tensors[name].is_contiguous():
            raise KernelError(f"{op}: {name} has strides {tensors[name].stride()}, make it contiguous")


def row_stride(op: str, name: str, tensor: Tensor) -> int:
    """Elements between tokens of (B, N, C), which may be columns of a wider tensor but not transposed or padded."""
    batch, token, channel = tensor.stride()
    if channel != 1 or (tensor.shape[0] > 1 and batch != tensor.shape[1] * token):
        raise KernelError(f"{op}: {name} has strides {tensor.stride()}, expected columns of a contiguous (B, N, C)")
    return token
