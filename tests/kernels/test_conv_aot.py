"""The kernels of the VAE, those that carry its state too, compile for every kind of card on a machine without a GPU."""

import pytest
from programs import printed

from sana_kernels.aot import SHARED_LIMITS
from sana_kernels.conv import TILES


# Without descriptors in hardware, with those and warp group products, with those alone.
@pytest.mark.parametrize("sm", [86, 90, 120])
def test_the_kernels_compile_for(sm: int) -> None:
    shared = printed("compile_convolutions.py", sm, sources=("kernels", "model_repository"))
    assert set(shared) == {
        "product", "fold", "fold_weights", "unfold", "sum", "down", "up", "mirror", "pixels", "fetch", "leave",
        "move",
    }  # fmt: skip
    assert all(size <= SHARED_LIMITS[sm] for size in shared.values())


def test_every_architecture_has_tiles() -> None:
    assert set(TILES) == set(SHARED_LIMITS)
