"""The TensorRT libraries: what to install for each, and whether the one that is installed is the one engines need."""

import importlib

from sana_runtime.errors import RepositoryError, choose

WHEELS = {"tensorrt_rtx": "tensorrt_rtx_cu13", "tensorrt": "tensorrt_cu13"}
"""Backends, which are names of Python modules with one interface, and what to install for each."""


def check_library(backend: str, built: str) -> None:
    """Raise RepositoryError unless the library of `backend` is installed in the version that built the engines.

    Engines are tied to the exact version, and one of another version may crash instead of failing.
    """
    wheel = choose("engine backend", backend, WHEELS)
    try:
        found = importlib.import_module(backend).__version__
    except ImportError:
        raise RepositoryError(
            f"the engines need {backend} {built}, which is not installed: run `pip install {wheel}=={built}`"
        ) from None
    if found != built:
        raise RepositoryError(
            f"the engines were built with {backend} {built} and this machine has {found}: "
            f"run `pip install {wheel}=={built}`, or build the repository again"
        )
