"""Frames that stay in shared memory of a client on this host: the first and the last stage read and write them there.

A request then holds no frames, only where they are, so the server has nothing to copy (ADR 12).
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

    def view(self, offset: object, shape: tuple[int, ...]) -> np.ndarray:
        """The uint8 array of `shape` at `offset`; raises RequestError where the region does not hold it all."""
        size = prod(shape)
        if type(offset) is not int or not 0 <= offset <= self._bytes.size - size:
            raise RequestError(
                f"frames of {size} bytes at {offset!r} are not inside the shared memory {self.name}, "
                f"which has {self._bytes.size}"
            )
        return self._bytes[offset : offset + size].reshape(shape)


def locate(
    parameters: Mapping[str, Any], tensor: str, shape: tuple[int, ...], held: Region | None, memory: Memory
) -> tuple[Region, np.ndarray] | tuple[None, None]:
    """Where a request says that the frames of `tensor` are: by name of the region, and by offset of the bytes.

    `held` is mapped already. Raises RequestError for a place that there is not; without one, the tensor holds the
    frames.
    """
    name = parameters.get(f"{tensor}_region")
    if name is None:
        return None, None
    region = held if held and held.name == name else Region(str(name), memory)
    return region, region.view(parameters.get(f"{tensor}_offset"), shape)
