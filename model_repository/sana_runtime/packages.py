"""Packages of ours that only some engines need: their repositories bring them as zip files beside the runtime."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from sana_runtime.errors import EngineError


def import_beside(engine: Path, what: str, module: str, *others: str) -> ModuleType:
    """Import `module` from the package in the repository of `engine`, which holds `what`; it imports the `others`.

    Raises EngineError if a package is not there or does not run on this machine.
    """
    for package in (module.split(".")[0], *others):
        archive = engine.parents[2] / f"{package}.zip"
        if not archive.is_file():
            raise EngineError(f"engine {engine} holds {what} and {archive} is missing: build the repository again")
        if str(archive) not in sys.path:
            sys.path.insert(0, str(archive))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f"engine {engine} holds {what} and {module} cannot be imported here: {error}") from error
