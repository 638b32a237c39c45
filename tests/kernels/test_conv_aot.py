"""The kernels of the VAE, those that carry its state too, compile for every kind of card on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sana_kernels.aot import SHARED_LIMITS
from sana_kernels.conv import TILES

SCRIPT = Path(__file__).with_name("compile_convolutions.py")
SOURCES = [str(Path(__file__).parents[2] / folder) for folder in ("kernels", "model_repository")]


# Without descriptors in hardware, with those and warp group products, with those alone.
@pytest.mark.parametrize("sm", [86, 90, 120])
def test_the_kernels_compile_for(sm: int) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(SOURCES)}
    command = [sys.executable, str(SCRIPT), str(sm)]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    shared = json.loads(printed)
    assert set(shared) == {
        "product", "fold", "fold_weights", "unfold", "sum", "down", "up", "mirror", "pixels", "fetch", "leave",
    }  # fmt: skip
    assert all(size <= SHARED_LIMITS[sm] for size in shared.values())


def test_every_architecture_has_tiles() -> None:
    assert set(TILES) == set(SHARED_LIMITS)
