"""The numpy resizer against the operation it stands for."""

import numpy as np
import pytest
import torch

from sana_client.resize import resizer

SIZES = [
    # An odd integer ratio: every sample falls on a source pixel.
    ((180, 320), (36, 64)),
    ((96, 99), (32, 32)),
    ((48, 64), (32, 64)),
    ((37, 91), (32, 64)),
    ((91, 37), (32, 64)),
    ((16, 16), (32, 64)),
    ((33, 64), (32, 64)),
    ((720, 1280), (64, 128)),
    ((1, 7), (16, 16)),
]


def reference(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale to cover and crop with torch, float32 (H, W, 3)."""
    h, w = frame.shape[:2]
    scale = max(height / h, width / w)
    scaled = round(h * scale), round(w * scale)
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    big = torch.nn.functional.interpolate(pixels, size=scaled, mode="bilinear", align_corners=False, antialias=False)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return big[0, :, top : top + height, left : left + width].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resizing_equals_torch(source: tuple[int, int], target: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    found = resizer(source, target).float_frame(frame)
    assert found.shape == (*target, 3)
    np.testing.assert_allclose(found, reference(frame, *target), atol=1e-3)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_frames_are_rounded_to_the_nearest_value(source: tuple[int, int], target: tuple[int, int]) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*source, 3), np.uint8)
    found = resizer(source, target)(frame)
    assert found.dtype == np.uint8
    assert np.abs(found - reference(frame, *target)).max() <= 0.501


def test_a_frame_of_the_right_size_passes_untouched() -> None:
    frame = np.random.default_rng(2).integers(0, 256, (32, 64, 3), np.uint8)
    np.testing.assert_array_equal(resizer((32, 64), (32, 64))(frame), frame)


def test_a_frame_that_only_needs_cropping_keeps_its_values() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (32, 97, 3), np.uint8)
    np.testing.assert_array_equal(resizer((32, 97), (32, 64))(frame), frame[:, 16:80])
