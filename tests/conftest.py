"""Paths and models that several tests share."""

import os
import sys
from pathlib import Path

import pytest

# Small tensors on busy cores: a second thread costs many times what it gains. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels run in the interpreter; 0 runs them for real, on a GPU. Read when Triton is first imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded outputs of the original implementation; they live beside the checkout and are not shipped."""
    folder = ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("golden data is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def micro_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest complete model, built once for the whole run; tests that change it take a copy."""
    from micro import build_micro

    output = tmp_path_factory.mktemp("micro") / "repo"
    build_micro(output, streams=3)
    return output


@pytest.fixture(scope="session")
def clip() -> Path:
    return ROOT / "assets" / "big-buck-bunny.mp4"
