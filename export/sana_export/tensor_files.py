"""Tensor files as they are released: read without running their code, unwrapped, and checked key by key (spec 8)."""

import json
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_runtime.errors import CheckpointError

Shape = tuple[int, ...]

INDEX = ".safetensors.index.json"
LISTED = 20
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .pth, .pt, .safetensors or .safetensors.index.json file, unwrapped, on the CPU.

    Raises CheckpointError for a file that is missing, damaged, or of another kind.
    """
    reader = next((read for ending, read in READERS.items() if path.name.endswith(ending)), None)
    if reader is None:
        raise CheckpointError(f"{path} is no checkpoint file: its name must end in one of {', '.join(READERS)}")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: download the checkpoint again")
    try:
        content = reader(path)
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or cut short ({reason}): download it again") from error
    return unwrap(path, content)


def _read_pickle(path: Path) -> Any:
    # Only zip archives can be mapped; files from before torch 1.6 are read whole.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_index(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    names = json.loads(path.read_text())["weight_map"]
    for shard in sorted(set(names.values())):
        if not (path.parent / shard).is_file():
            raise CheckpointError(f"{path.parent / shard} does not exist, but {path.name} lists it: download it again")
        tensors |= _read_safetensors(path.parent / shard)
    return tensors


READERS: dict[str, Callable[[Path], Any]] = {
    ".pth": _read_pickle,
    ".pt": _read_pickle,
    ".safetensors": _read_safetensors,
    INDEX: _read_index,
}


def unwrap(where: Path, content: Any) -> dict[str, Tensor]:
    """The state dict inside a trainer's file: below `generator` and `state_dict`, or stripped of wrapper prefixes."""
    if isinstance(content, Mapping) and "generator" in content:
        content = content["generator"]
    if isinstance(content, Mapping) and "state_dict" in content:
        tensors = content["state_dict"]
    elif isinstance(content, Mapping):
        tensors = {str(key).removeprefix("model.").removeprefix("module."): value for key, value in content.items()}
    else:
        tensors = content
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{where} holds something else than a state dict of tensors: name a model checkpoint")
    return dict(tensors)


def check_tensors(
    where: str, expected: Mapping[str, Shape], found: Mapping[str, Tensor], optional: Collection[str] = ()
) -> None:
    """Raise CheckpointError naming every missing, unexpected and misshapen key, unless `found` is just `expected`.

    Keys in `optional` may be missing. Quantised tensors are misshapen: FP32, BF16 and FP16 are accepted.
    """
    faults = [f"{key} is missing" for key in expected if key not in found and key not in optional]
    faults += [f"{key} is unexpected" for key in found if key not in expected]
    faults += [fault for key, shape in expected.items() if key in found and (fault := _fault(key, shape, found[key]))]
    if faults:
        more = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise CheckpointError(f"{where} is not of the expected architecture: {', '.join(faults[:LISTED])}{more}")


def _fault(key: str, shape: Shape, tensor: Tensor) -> str | None:
    if tuple(tensor.shape) != tuple(shape):
        return f"{key} has shape {list(tensor.shape)} instead of {list(shape)}"
    if tensor.dtype not in FLOATS:
        return f"{key} has dtype {str(tensor.dtype).removeprefix('torch.')} instead of a plain float"
    return None
