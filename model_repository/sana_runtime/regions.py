"""Frames and latents that stay in shared memory of a client on this host, where stages read and write them.

A request then holds none, only where they are, so the server has nothing to copy (ADR 12).
"""

import mmap
import os
import re
import weakref
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sana_runtime.errors import RequestError
from sana_runtime.memory import Memory

FOLDER = Path("/dev/shm")
PREFIX = "sana-frames-"
"""What the name of a client's region begins with: a request must not make a stage write to anything else."""

NAME = re.compile(PREFIX + "[0-9a-z]+")


class Region:
    """A client's region, mapped until nobody refers to it any more, which a device reads and writes by itself.

    Raises RequestError for a name that is not that of such a region, or that this host does not know.
    """

    def __init__(self, name: str, memory: Memory) -> None:
        if not NAME.fullmatch(name):
            raise RequestError(f"{name!r} is not a region of frames: name it {PREFIX}... of small letters and digits")
        self.name = name
        try:
            descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise RequestError(
                f"the shared memory {name} cannot be opened here ({error.strerror}): send the frames in the request"
            ) from None
        try:
            # An empty region cannot be mapped, and has no room for a frame either.
            self._bytes = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
        except ValueError:
            raise RequestError(f"the shared memory {name} is empty: give it its size first") from None
        finally:
            os.close(descriptor)
        # When the process ends there may be no device left to tell.
        weakref.finalize(self, memory.share(self._bytes)).atexit = False

    def view(self, offset: object, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """The array at `offset`; raises RequestError where the region does not hold it all, or not at its alignment."""
        kind = np.dtype(dtype)
        size = prod(shape) * kind.itemsize
        if type(offset) is not int or not 0 <= offset <= self._bytes.size - size:
            raise RequestError(
                f"{size} bytes at {offset!r} are not inside the shared memory {self.name}, which has {self._bytes.size}"
            )
        if offset % kind.itemsize:
            raise RequestError(f"{dtype} values in shared memory begin at a multiple of {kind.itemsize}, not {offset}")
        return self._bytes[offset : offset + size].view(kind).reshape(shape)


Regions = tuple[Region, ...]
"""What is mapped for one stream."""


class Places:
    """Where one request says that tensors are; `held` is mapped already, from the stream's chunk before."""

    def __init__(self, parameters: Mapping[str, Any], held: Regions, memory: Memory) -> None:
        self._parameters, self._memory = parameters, memory
        self._held = {region.name: region for region in held}
        self._used: dict[str, Region] = {}

    @property
    def regions(self) -> Regions:
        """Those that this request names, to be held for the next one."""
        return tuple(self._used.values())

    def find(self, tensor: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The array in the region, by its name and the offset of the bytes; None where the tensor holds the values.

        Raises RequestError for a place that there is not.
        """
        name = self._parameters.get(f"{tensor}_region")
        if name is None:
            return None
        region = self._used.get(name) or self._held.get(name) or Region(str(name), self._memory)
        self._used[region.name] = region
        return region.view(self._parameters.get(f"{tensor}_offset"), dtype, shape)
