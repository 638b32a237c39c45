"""The kernels compile for every card that sana-build names, on a machine without a GPU."""

from pathlib import Path

import pytest
from programs import printed

from sana_kernels.aot import SHARED_LIMITS
from sana_kernels.launch import LAUNCHES

STEADY, FIRST = 3, 5
"""Frames of a chunk."""


# TF32 products of Hopper take other layouts than any other card here; FP32 fills the shared memory of sm_80 and sm_86.
@pytest.mark.parametrize(
    ("sm", "precision", "frames"),
    [
        (80, "fp32", STEADY),
        (86, "fp32", STEADY),
        (90, "bf16", STEADY),
        (90, "bf16", FIRST),
        (90, "tf32", STEADY),
        (90, "tf32", FIRST),
        (90, "fp32", STEADY),
        (90, "fp32", FIRST),
        (120, "bf16", STEADY),
        (121, "bf16", STEADY),
    ],
)
def test_the_kernels_compile_for(sm: int, precision: str, frames: int) -> None:
    cubins = printed("compile_ahead.py", sm, frames, precision)
    assert [cubin["entry"] for cubin in cubins] == ["prepare", "summaries", "scan", "readout"]
    assert all(0 < cubin["shared"] <= SHARED_LIMITS[sm] and cubin["bytes"] > 0 for cubin in cubins)


def test_every_architecture_has_a_row_for_every_precision() -> None:
    assert set(LAUNCHES) == {(sm, precision) for sm in SHARED_LIMITS for precision in ("fp32", "tf32", "bf16")}


def test_kernels_that_are_compiled_ahead_do_not_run_and_say_what_is_wrong_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = printed("compile_together.py")
    names = "leave", "move", "fill", "mirror", "pixels", "fold", "fold_weights", "product", "residual_norm"
    assert set(found["compiled"]) == set(found["missing"]) == set(names)
    assert all(size > 0 for size in found["compiled"].values())
    assert found["untouched"]
    assert "no card can do this" in found["refused"]
    assert printed("compile_together.py")["missing"] == []
