"""The kernels around the gated delta network compile for every kind of card, on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sana_kernels.aot import SHARED_LIMITS

SCRIPT = Path(__file__).with_name("compile_dit.py")
KERNELS = Path(__file__).parents[2] / "kernels"


# A100 cannot convert to E4M3, and gets no FP8 weights.
@pytest.mark.parametrize("sm", [89, 90, 100, 120])
def test_the_kernels_compile_for(sm: int) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(KERNELS)}
    printed = subprocess.run(
        [sys.executable, str(SCRIPT), str(sm)], env=environment, check=True, stdout=subprocess.PIPE
    )
    shared = json.loads(printed.stdout)
    assert len(shared) == 7
    assert max(shared.values()) <= SHARED_LIMITS[sm]
