"""A headless Chromium with a webcam that shows a clip."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 320, 180


def write_webcam(clip: Path, path: Path, frames: int = 120) -> Path:
    """The clip as the motion JPEG that Chromium plays as a camera, over and over."""
    with av.open(str(clip)) as source, path.open("wb") as target:
        for frame in islice(source.decode(video=0), frames):
            frame.to_image().resize((WIDTH, HEIGHT)).save(target, "JPEG", quality=90)
    return path


@asynccontextmanager
async def chromium(webcam: Path) -> "AsyncIterator[Browser]":
    """A browser until the block ends; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.skip("no Chromium is installed")
    options = [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={webcam}",
    ]
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=executable, args=options)
        try:
            yield browser
        finally:
            await browser.close()
