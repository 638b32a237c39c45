"""The kernels around the gated delta network compile for every kind of card, on a machine without a GPU."""

import pytest
from programs import printed

from sana_kernels.aot import SHARED_LIMITS


# A100 cannot convert to E4M3, and gets no FP8 weights.
@pytest.mark.parametrize("sm", [89, 90, 100, 120])
def test_the_kernels_compile_for(sm: int) -> None:
    shared = printed("compile_dit.py", sm)
    assert len(shared) == 7
    assert max(shared.values()) <= SHARED_LIMITS[sm]
