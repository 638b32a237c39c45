"""Tensors between the python backend and numpy, by DLPack.

The stub of server 2.51 is compiled against numpy 1. Under numpy 2 it reads every item size as zero, so `as_numpy`
repeats the first element over the whole array, with no error. DLPack does not pass through that code, but it has no
strings, which is why the prompt crosses the wire as UTF-8 in uint8.
"""

import ctypes
from typing import Any

import numpy as np

CONSUMED = b"used_dltensor"


def to_numpy(tensor: Any) -> np.ndarray:
    """A read-only view of a request's tensor, valid until the request is answered."""
    return np.from_dlpack(tensor)


def to_triton(pb_utils: Any, name: str, array: np.ndarray) -> Any:
    """The array as an answer's tensor."""
    if not array.size:
        # The backend takes the strides that numpy gives an empty array for another order; no item is read here.
        return pb_utils.Tensor(name, array)
    # DLPack knows no read-only memory, and a cached text tensor or a zero-copy output may be just that.
    writable = np.require(array, requirements=["C", "W"])
    capsule = writable.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The backend marks the capsule by a name of its own, over which numpy would print a traceback for every tensor.
    _set_name(capsule, CONSUMED)
    return tensor


_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]
