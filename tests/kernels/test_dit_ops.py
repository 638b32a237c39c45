"""The operators around the gated delta network as PyTorch sees them, on a CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sana_kernels import naive_dit
from sana_kernels.dit_ops import cross_attention, depthwise_glu, gate_rows, residual_norm, stack_frames, write_window


def draw(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "norm": (
        residual_norm,
        (draw(2, 6, 8), draw(2, 6, 8), None, None, draw(8), draw(8), draw(8), 1, True, True, 0.1),
    ),
    "norm alone": (residual_norm, (draw(2, 6, 8), *[None] * 4, draw(8), draw(8), 1, False, True, None)),
    "temporal": (
        residual_norm,
        (draw(2, 6, 8), draw(2, 6, 8), draw(2, 6, 8) + 1, draw(2, 2, 8), draw(8), None, None, 3, True, False, None),
    ),
    "depthwise": (depthwise_glu, (draw(1, 6, 16), draw(9, 16), draw(16), 2, 3, None)),
    "depthwise fp8": (depthwise_glu, (draw(1, 6, 16), draw(9, 16), draw(16), 2, 3, 0.1)),
    "window": (
        write_window,
        (*(draw(3, 1, 4, 8)), draw(8), draw(8), draw(1, 4, 4), draw(1, 9, 8), draw(1, 9, 8) + 1, 2),
    ),
    "cross": (
        cross_attention,
        (draw(2, 3, 8), draw(2, 2, 5, 4), draw(2, 2, 5, 4), draw(2, 5), torch.tensor([5, 3]), None),
    ),
    "stacked": (stack_frames, (draw(2, 6, 8), draw(2, 2, 8), 3, 0.1)),
    "stacked alone": (stack_frames, (draw(2, 6, 8), None, 3, 0.1)),
    "shares": (gate_rows, (draw(3, 4, 8), draw(1, 4, 8), True, None, draw(3, 2, 4))),
    "gate": (gate_rows, (draw(2, 3, 8), draw(2, 3, 8), True, 0.1)),
}


@pytest.mark.parametrize(("operator", "arguments"), CALLS.values(), ids=CALLS)
def test_pytorch_accepts_the_operators(operator: Any, arguments: tuple[Any, ...]) -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator, arguments, test_utils=checks)


def test_stacked_frames_are_what_the_temporal_layer_is_a_product_of() -> None:
    """Three products of a frame added up are one product of three frames."""
    frames, tokens, width = 3, 2, 4
    point, weight, tail = draw(1, frames * tokens, width), draw(width, 3 * width), draw(1, tokens, width)
    left, own, right = weight.chunk(3, dim=1)
    added = point @ own.T
    added[:, tokens:] += point[:, :-tokens] @ left.T
    added[:, :-tokens] += point[:, tokens:] @ right.T
    found = naive_dit.mix(point, added, tail @ left.T, frames)
    torch.testing.assert_close(found, point + naive_dit.stacked(point, tail, frames) @ weight.T)
