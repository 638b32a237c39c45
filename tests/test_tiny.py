"""The shipped tiny checkpoint through the real server: it edits, follows the prompt, and keeps what it should."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sana_build.build import build
from sana_build.plan import resolve
from sana_build.server import Ports, TritonServer
from sana_export.configs import TINY
from sana_export.pixels import pixels_to_uint8
from streams import pieces, served

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from train_tiny.collect import held_out_clip
from train_tiny.edits import styled
from train_tiny.evaluate import held_out_world, scene_pair
from train_tiny.prompts import phrases

pytestmark = pytest.mark.server

LOOKS = {
    "sepia": "Let the whole clip have a sepia tone.",
    "sketch": "Let the whole clip have a pencil sketch style.",
    "blur": "Let the whole clip have a soft dreamy blur.",
}
"""Held-out instructions; the clip is held out as well."""

FRAMES = TINY.geometry.first_frames + 2 * TINY.geometry.steady_frames
OBJECTS = ("recolour/heart/red", "remove/star", "add/box/green")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("tiny") / "repo"
    build(resolve("tiny", None, "cpu", None, repository, streams=2), Console(quiet=True))
    with TritonServer(repository, Ports.free(), repository.parent / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def source(clip: Path) -> np.ndarray:
    """Three chunks of the held-out clip, uint8 (F, H, W, 3)."""
    return held_out_clip(clip)[:FRAMES]


@pytest.fixture(scope="module")
def edit(server: TritonServer, source: np.ndarray) -> Callable[[str], np.ndarray]:
    """The source edited by an instruction, through the server, once for all tests."""
    return cache(lambda prompt: stream(server, source, prompt))


def stream(server: TritonServer, source: np.ndarray, prompt: str) -> np.ndarray:
    chunks = np.split(source, range(TINY.geometry.first_frames, len(source), TINY.geometry.steady_frames))
    return np.concatenate(asyncio.run(served(server.grpc_url, pieces(chunks, [prompt] * len(chunks)))))


def truth(source: np.ndarray, look: str) -> np.ndarray:
    video = torch.from_numpy(source).permute(3, 0, 1, 2)[None].float() / 255
    return (255 * styled(video, [look])[0]).clamp(0, 255).permute(1, 2, 3, 0).numpy()


def psnr(shown: np.ndarray, wanted: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((shown.astype(np.float32) - wanted.astype(np.float32)) ** 2) / 255**2))


@pytest.mark.parametrize("look", LOOKS)
def test_an_edit_is_far_closer_to_its_truth_than_the_source(
    edit: Callable[[str], np.ndarray], source: np.ndarray, look: str
) -> None:
    wanted = truth(source, look)
    assert psnr(edit(LOOKS[look]), wanted) >= psnr(source, wanted) + 6


def test_another_prompt_gives_another_edit(edit: Callable[[str], np.ndarray], source: np.ndarray) -> None:
    wanted = truth(source, "sepia")
    assert psnr(edit(LOOKS["sepia"]), wanted) >= psnr(edit(LOOKS["sketch"]), wanted) + 6


def test_a_video_that_shall_stay_as_it_is_stays(edit: Callable[[str], np.ndarray], source: np.ndarray) -> None:
    assert psnr(edit("Please keep the whole video unchanged."), source) >= 27


@pytest.mark.parametrize("key", OBJECTS)
def test_the_object_that_is_named_is_edited(server: TritonServer, clip: Path, key: str) -> None:
    world = held_out_world(torch.from_numpy(held_out_clip(clip)), seed=5)
    pair = scene_pair(world, [key])(range(FRAMES))
    source, wanted = (pixels_to_uint8(video)[0].numpy() for video in pair)
    edited = stream(server, source, phrases(key, held_out=True)[0])
    assert psnr(edited, wanted) >= psnr(source, wanted) + 6
