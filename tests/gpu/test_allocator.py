"""How torch's allocator of GPU memory is set, which counts until torch looks at a GPU: in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROWING = "expandable_segments:True"

FAKE = """
import os, sys
print(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
sys.exit()
"""
"""In place of torch: says what it would read, and ends the process."""


def output(code: str, first: Path | None = None, **given: str) -> str:
    """What `code` prints where the user has `given` variables in the environment, with modules of `first`."""
    mine = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    path = os.pathsep.join([str(first), *sys.path] if first else sys.path)
    environment = mine | given | {"PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import sana_gpu.load",
        # A stage looks for a GPU before it knows which engine it loads.
        "from sana_runtime.memory import local_architecture; local_architecture()",
        "import runpy; runpy.run_path('benchmarks/gpu', run_name='__main__')",
    ],
    ids=["load", "stage", "benchmark"],
)
def test_is_told_to_put_room_together_before_torch_is_imported(code: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(FAKE)
    assert output(code, tmp_path) == GROWING


def test_torch_understands() -> None:
    assert output("import sana_gpu, torch; print(torch._C._accelerator_getAllocatorSettings())") == GROWING


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_settings_of_the_user_stay(name: str) -> None:
    code = "import os, sana_gpu; print(*(value for key, value in os.environ.items() if 'ALLOC_CONF' in key))"
    assert output(code, **{name: "max_split_size_mb:512"}) == "max_split_size_mb:512"
