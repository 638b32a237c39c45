import pytest
import torch
from torch import nn

from sana_export.configs import SANA_STREAMING, TINY
from sana_export.dit import DiT
from sana_quant.groups import GROUPS, HIGH_PRECISION, block_ranges


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def inside(name: str) -> str:
    """The module path within a block, or the name itself."""
    return name.split(".", 2)[2] if name.startswith("blocks.") else name


@pytest.fixture(scope="module")
def names() -> list[str]:
    with torch.device("meta"):
        return layers(DiT(TINY.dit))


def test_every_layer_is_in_one_group_or_always_in_high_precision(names: list[str]) -> None:
    grouped = {name for name in names if name.startswith("blocks.") and inside(name) in GROUPS.values()}
    high = {name for name in names if inside(name).startswith(HIGH_PRECISION)}
    assert not grouped & high
    assert grouped | high == set(names)


def test_every_block_has_every_group(names: list[str]) -> None:
    for block in range(TINY.dit.depth):
        for module in GROUPS.values():
            assert f"blocks.{block}.{module}" in names


def test_nothing_is_listed_that_the_model_does_not_have(names: list[str]) -> None:
    for module in HIGH_PRECISION:
        assert any(inside(name).startswith(module) for name in names)


def test_the_ranges_are_the_papers_at_its_depth() -> None:
    ranges = block_ranges(SANA_STREAMING.dit.depth)
    assert ranges == {"shallow": range(6), "middle": range(6, 14), "deep": range(14, 20)}


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7, 8, 20, 28])
def test_the_ranges_cover_every_block_once_and_are_symmetric(depth: int) -> None:
    ranges = block_ranges(depth)
    assert [block for blocks in ranges.values() for block in blocks] == list(range(depth))
    assert len(ranges["shallow"]) == len(ranges["deep"])


def test_the_ranges_of_tiny() -> None:
    assert block_ranges(8) == {"shallow": range(2), "middle": range(2, 6), "deep": range(6, 8)}
