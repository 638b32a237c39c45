"""The Triton server inside the wheel `nvidia-pytriton`: where its parts are and what a direct start still needs."""

import shutil
import sys
import sysconfig
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sana_runtime.errors import ConfigError

WHEEL = "nvidia-pytriton==0.7.0"
SERVER_VERSION = "2.51.0"
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Bundle:
    """Paths of the server's parts; `stub` fits the running Python version, `libraries` is the loader path of both."""

    server: Path
    backend: Path
    stub: Path
    caches: Path
    libraries: tuple[Path, ...]

    def make_backends(self, directory: Path) -> Path:
        """Lay out a backend directory below `directory`: the wheel keeps the stub away from the backend library."""
        target = directory / "backends" / "python"
        target.mkdir(parents=True)
        for part in self.backend.iterdir():
            (target / part.name).symlink_to(part)
        shutil.copy2(self.stub, target / STUB)
        return target.parent


def find_bundle() -> Bundle:
    """The installed server; raises ConfigError naming the part that is missing and what to install."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the bundled Triton server is not installed: run `pip install --no-deps {WHEEL}`")
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    bundle = Bundle(
        server=root / "bin" / "tritonserver",
        backend=root / "backends" / "python",
        stub=root / "python_backend_stubs" / python / STUB,
        caches=root / "caches",
        libraries=(package.parent / "nvidia_pytriton.libs", *find_libpython()),
    )
    for part in (bundle.server, bundle.backend, bundle.stub, bundle.libraries[0]):
        if not part.exists():
            raise ConfigError(f"{part} is missing: install {WHEEL}, which serves Python 3.8 to 3.13, this is {python}")
    return bundle


def find_libpython() -> tuple[Path, ...]:
    """Directories in which the stub will find libpython, none if the loader knows it; ConfigError if it is absent."""
    version = sysconfig.get_config_var("py_version_short")
    name = f"libpython{version}.so.1.0"
    # A relocated Python (uv, conda) reports the LIBDIR of the machine it was compiled on, so look below its prefix too.
    for directory in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"):
        if directory and (Path(directory) / name).is_file():
            return (Path(directory),)
    if find_library(f"python{version}") == name:
        return ()
    raise ConfigError(
        f"no {name} on this machine, which the server's Python process is linked to: "
        f"install the package libpython{version}, or use a Python built with --enable-shared"
    )
