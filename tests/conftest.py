"""Paths and models that several tests share."""

import sys
from pathlib import Path

import pytest

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
def clip() -> Path:
    return ROOT / "assets" / "big-buck-bunny.mp4"
