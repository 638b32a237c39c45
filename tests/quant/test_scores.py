import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sana_quant import scores
from sana_quant.scores import gmsd, perceptual, relative_rmse


def test_relative_rmse_is_over_the_spread_of_the_reference() -> None:
    reference = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 1, 2, 2) + 5
    assert relative_rmse(reference + 0.3, reference).item() == pytest.approx(0.3, rel=1e-5)
    assert relative_rmse(10 * reference + 0.3, 10 * reference).item() == pytest.approx(0.03, rel=1e-5)


def test_every_stream_has_its_own() -> None:
    reference = torch.randn(1, 4, 2, 5, 5, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1, -1)
    edited = reference + torch.tensor([0.0, 0.1, 0.4]).view(3, 1, 1, 1, 1)
    errors = relative_rmse(edited, reference)
    assert errors[0] == 0
    assert (errors[2] / errors[1]).item() == pytest.approx(4, rel=1e-5)


def picture() -> torch.Tensor:
    """Two frames (2, 3, 64, 96) with structure at several sizes, in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((4, 6), (16, 24), (64, 96))
    layers = [F.interpolate(torch.rand(2, 3, *size, generator=generator), (64, 96)) for size in sizes]
    return torch.stack(layers).mean(0) * 2 - 1


def test_equal_frames_are_at_no_distance_and_worse_ones_further() -> None:
    frames = picture()
    slight, heavy = (F.avg_pool2d(frames, width, 1, width // 2) for width in (3, 9))
    assert gmsd(frames, frames).tolist() == [0, 0]
    assert (gmsd(slight, frames) > 0.01).all()
    assert (gmsd(heavy, frames) > gmsd(slight, frames)).all()


def test_brightness_alone_is_no_perceptual_distance() -> None:
    frames = 0.5 * picture()
    assert gmsd(frames + 0.2, frames).max() < 1e-5


def test_without_the_weights_of_lpips_its_stand_in_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert perceptual().name == "gmsd"
    assert "standing in for LPIPS" in perceptual().title


def test_lpips_is_taken_where_its_weights_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / scores.LPIPS_BACKBONE).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found("json") if name == "lpips" else found(name))
    assert perceptual().name == "lpips"
