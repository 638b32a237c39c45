import numpy as np
import pytest
import torch

from sana_export.rope import RopeTable, axis_widths, rope_angles, rope_rows, rotate
from sana_runtime.errors import SanaError


def test_axes_of_the_released_head() -> None:
    assert axis_widths(112) == (40, 36, 36)


def test_rows_are_in_frame_row_column_order() -> None:
    angles = rope_angles(24, range(5, 7), 2, 3)
    assert angles.shape == (12, 12)
    frame, row, column = 6, 1, 2
    token = angles[(frame - 5) * 6 + row * 3 + column]
    # The first pair of every axis turns by one radian per position.
    np.testing.assert_allclose(token[[0, 4, 8]], [frame, row, column])
    np.testing.assert_allclose(token[3], frame * 10000 ** (-6 / 8))


def test_rotation_is_a_product_of_complex_numbers() -> None:
    x = torch.randn(2, 3, 12, 24)
    angles = rope_angles(24, range(4, 6), 2, 3)
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.from_numpy(np.exp(1j * angles))
    wanted = torch.view_as_real(turned).flatten(-2)
    torch.testing.assert_close(rotate(x, rope_rows(24, range(4, 6), 2, 3)).double(), wanted, rtol=0, atol=2e-6)


def test_rotation_keeps_the_dtype() -> None:
    x = torch.randn(1, 1, 6, 24, dtype=torch.bfloat16)
    assert rotate(x, rope_rows(24, range(1), 2, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("start", [0, 5, 61])
def test_table_gathers_the_rows_of_any_chunk(start: int) -> None:
    table = RopeTable(24, 64, 2, 3)
    for found, wanted in zip(
        table(torch.tensor([start]), 3), rope_rows(24, range(start, start + 3), 2, 3), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_table_is_not_part_of_a_checkpoint() -> None:
    assert not RopeTable(24, 64, 2, 3).state_dict()


def test_frames_past_the_table_are_refused() -> None:
    rope_rows(24, range(61, 64), 2, 3, max_frames=64)
    with pytest.raises(SanaError, match="62 to 64 are beyond the rotary table of 64 frames"):
        rope_rows(24, range(62, 65), 2, 3, max_frames=64)
