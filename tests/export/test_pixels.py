"""Pixels: exact at the ends of the range, truncating, and cropped at the centre."""

import pytest
import torch

from sana_export.pixels import cover, pixels_to_uint8, resize_and_crop, uint8_to_pixels


def test_range_and_layout() -> None:
    frames = torch.zeros(1, 2, 4, 6, 3, dtype=torch.uint8)
    frames[0, 1, 2, 3, 0] = 255
    video = uint8_to_pixels(frames)
    assert video.shape == (1, 3, 2, 4, 6)
    assert video[0, 0, 1, 2, 3] == 1.0
    assert video.sum() == 1.0 - (video.numel() - 1)


def test_every_value_survives_up_to_truncation() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    back = pixels_to_uint8(uint8_to_pixels(values)).int()
    assert ((values.int() - back) >= 0).all()
    assert ((values.int() - back) <= 1).all()


@pytest.mark.parametrize(("value", "pixel"), [(-3.0, 0), (-1.0, 0), (0.0, 127), (0.999, 254), (1.0, 255), (9.0, 255)])
def test_output_is_clamped_and_truncated(value: float, pixel: int) -> None:
    assert pixels_to_uint8(torch.full((1, 3, 1, 2, 2), value)).unique().tolist() == [pixel]


def test_cover_scales_by_the_larger_ratio() -> None:
    assert cover(1080, 1920, 704, 1280) == (720, 1280)
    assert cover(360, 640, 144, 256) == (144, 256)
    assert cover(1920, 1080, 704, 1280) == (2276, 1280)


def test_crop_is_centred_and_keeps_the_middle() -> None:
    frames = torch.zeros(1, 1, 8, 12, 3, dtype=torch.uint8)
    frames[:, :, :, 2:10] = 255
    video = resize_and_crop(frames, 8, 8)
    assert video.shape == (1, 3, 1, 8, 8)
    assert (video == 1).all()


def test_odd_excess_is_truncated_to_the_left() -> None:
    frames = torch.arange(5, dtype=torch.uint8).reshape(1, 1, 1, 5, 1).expand(1, 1, 4, 5, 3)
    video = resize_and_crop(frames, 4, 4)
    assert torch.equal(video, uint8_to_pixels(frames[:, :, :, :4]))


def test_downscaling_is_not_smoothed() -> None:
    frames = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    frames[:, :, 0] = 255
    assert (resize_and_crop(frames, 2, 2) == -1).all()
