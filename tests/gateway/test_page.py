"""The page in a real browser, with a webcam that shows the shipped clip, against the real model server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsers import chromium, write_webcam
from gateways import SIZE, Client, Gateway, client, gateway, init, source

from sana_build.server import TritonServer

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = pytest.mark.server

WAIT_MS = 20000
BRIGHTNESS = """() => {
  const canvas = document.getElementById("view"), half = canvas.width / 2;
  const mean = (x) => {
    const { data } = canvas.getContext("2d").getImageData(x, 0, half, canvas.height);
    return data.reduce((sum, value, at) => sum + (at % 4 === 3 ? 0 : value), 0) / (data.length * 0.75);
  };
  return [mean(0), mean(half)];
}"""
"""Mean brightness of the source and of the edit, as they are shown side by side."""


@pytest.fixture
def webcam(clip: Path, tmp_path: Path) -> Path:
    return write_webcam(clip, tmp_path / "webcam.mjpeg")


@asynccontextmanager
async def opened(browser: "Browser", address: str, left: bool = True, **options: object) -> "AsyncIterator[Page]":
    """A page without errors on its console; the test fails if there are any. It stays open unless it is `left`."""
    context = await browser.new_context(permissions=["camera"], **options)
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    await page.goto(address)
    await page.locator('#status:is([data-state="ready"], [data-state="running"])').wait_for()
    yield page
    assert not errors
    if left:
        await context.close()


async def say(page: "Page", prompt: str) -> None:
    await page.fill("#prompt", prompt)
    await page.press("#prompt", "Enter")


async def shown(page: "Page", prompt: str) -> None:
    """Wait until a chunk was computed with this prompt, and its frames are on the screen."""
    await page.wait_for_function("(prompt) => document.getElementById('shown').textContent === prompt", arg=prompt)
    chunks = int(await page.inner_text("#chunks"))
    await page.wait_for_function(
        "(chunks) => Number(document.getElementById('chunks').textContent) > chunks + 1", arg=chunks
    )


async def test_webcam_prompt_change_pause_and_a_second_viewer(gate: Gateway, webcam: Path) -> None:
    async with chromium(webcam) as browser, opened(browser, gate.http) as page:
        await say(page, "invert")
        await page.click("#start")
        await shown(page, "invert")
        source, edit = await page.evaluate(BRIGHTNESS)
        assert abs(source + edit - 255) < 8
        await say(page, "keep")
        await shown(page, "keep")
        source, edit = await page.evaluate(BRIGHTNESS)
        assert abs(source - edit) < 8
        # The camera delivers about 25 a second; a busy machine may lose some, but not most.
        assert float(await page.inner_text("#fps-in")) > 8
        assert float((await page.inner_text("#lag")).removesuffix(" ms")) > 0
        session = next(iter(gate.hub.sessions))
        async with opened(browser, f"{gate.http}/?watch={session}") as viewer:
            await shown(viewer, "keep")
            source, edit = await viewer.evaluate(BRIGHTNESS)
            assert abs(source - edit) < 8
        for width in (16, 16, 32):
            await page.keyboard.press("v")
            await page.wait_for_function("(width) => document.getElementById('view').width === width", arg=width)
        await page.keyboard.press("p")
        assert await page.evaluate("document.activeElement.id") == "prompt"
        await page.keyboard.press("Escape")
        assert await page.evaluate("document.activeElement.id") == ""
        await page.keyboard.press("r")
        await page.locator("#record[aria-pressed=true]").wait_for()
        async with page.expect_download():
            await page.keyboard.press("r")
        await page.keyboard.press("Space")
        await page.locator("#pause:has-text('Resume')").wait_for()
        await page.keyboard.press("Space")
        await page.locator("#pause:has-text('Pause')").wait_for()
        await page.keyboard.press("Escape")
        await page.locator("#start:enabled").wait_for()


async def test_a_sample_plays_through_in_every_layout_and_can_be_recorded(gate: Gateway, webcam: Path) -> None:
    async with chromium(webcam) as browser, opened(browser, gate.http) as page:
        await page.check('input[value="sample"]')
        await say(page, "invert")
        await page.click("#start")
        await shown(page, "invert")
        await page.click("#record")
        for layout, width in (("split", 16), ("edit", 16), ("side", 32)):
            await page.check(f'input[value="{layout}"]')
            assert await page.evaluate("document.getElementById('view').width") == width
        async with page.expect_download() as download:
            await page.click("#record")
        saved = await (await download.value).path()
        assert saved.stat().st_size > 0
        await page.locator("#status:has-text('complete, 6 chunks')").wait_for()


async def test_an_uploaded_file_is_edited_and_a_wrong_one_is_explained(gate: Gateway, webcam: Path, clip: Path) -> None:
    async with chromium(webcam) as browser, opened(browser, gate.http) as page:
        await page.check('input[value="file"]')
        await say(page, "invert")
        await page.click("#start")
        await page.locator("#trouble:has-text('choose a file')").wait_for()
        await page.set_input_files("#file", Path(__file__))
        await page.click("#start")
        await page.locator("#trouble:has-text('no video that can be taken')").wait_for()
        await page.set_input_files("#file", clip)
        await page.click("#start")
        await shown(page, "invert")


async def test_the_page_comes_back_after_a_drop_and_goes_on(gate: Gateway, webcam: Path) -> None:
    async with chromium(webcam) as browser, opened(browser, gate.http) as page:
        await say(page, "invert")
        await page.click("#start")
        await shown(page, "invert")
        first = next(iter(gate.hub.sessions))
        gate.drop_connections()
        await page.locator('#status[data-state="lost"]').wait_for()
        await page.locator('#status[data-state="running"]').wait_for()
        await shown(page, "invert")
        assert first not in gate.hub.sessions


async def test_a_phone_shows_everything_without_scrolling_sideways(gate: Gateway, webcam: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    async with chromium(webcam) as browser, opened(browser, gate.http, **phone) as page:
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        for name in ("#start", "#prompt", "#stats", "#sources"):
            assert await page.locator(name).is_visible()


async def test_a_token_comes_from_the_address_and_is_not_left_there(
    model_server: TritonServer, tmp_path: Path, webcam: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[ann]\ntoken = "a-long-enough-secret"\n')
    async with (
        gateway(tmp_path, model_server.grpc_url, tokens=tokens) as gate,
        chromium(webcam) as browser,
        opened(browser, f"{gate.http}/#token=a-long-enough-secret") as page,
    ):
        assert "secret" not in page.url
        await say(page, "invert")
        await page.click("#start")
        await shown(page, "invert")


async def test_webrtc_takes_the_webcam_and_brings_the_edit_until_it_is_cut_off_and_comes_back(
    gate: Gateway, webcam: Path
) -> None:
    async with chromium(webcam) as browser, opened(browser, gate.http) as page:
        await page.check('input[value="webrtc"]')
        await say(page, "invert")
        await page.locator('#status[data-state="ready"]').wait_for()
        await page.click("#start")
        await shown(page, "invert")
        source, edit = await page.evaluate(BRIGHTNESS)
        # The codec of the track keeps one colour for four pixels, of which there are few.
        assert abs(source + edit - 255) < 12
        await say(page, "keep")
        await shown(page, "keep")
        await page.wait_for_function("() => document.getElementById('lag').textContent.endsWith(' ms')")
        assert float(await page.inner_text("#fps-in")) > 8
        first = next(iter(gate.hub.sessions))
        await gate.hub.sessions[first].close()
        await page.locator('#status[data-state="lost"]').wait_for()
        await page.locator('#status[data-state="running"]').wait_for()
        await shown(page, "keep")
        assert first not in gate.hub.sessions
        source, edit = await page.evaluate(BRIGHTNESS)
        assert abs(source - edit) < 12


@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
async def test_the_page_outlives_the_gateway(
    model_server: TritonServer, tmp_path: Path, webcam: Path, transport: str
) -> None:
    async with chromium(webcam) as browser:
        async with gateway(tmp_path, model_server.grpc_url) as gate, opened(browser, gate.http, left=False) as page:
            await page.check(f'input[value="{transport}"]')
            await say(page, "invert")
            await page.click("#start")
            await shown(page, "invert")
        await page.locator('#status[data-state="lost"]').wait_for()
        await asyncio.sleep(2)
        async with gateway(tmp_path, model_server.grpc_url, listen_on=gate.port):
            await page.locator('#status[data-state="running"]').wait_for()
            await shown(page, "invert")


@pytest.mark.parametrize(("form", "said"), [("jpeg", ""), ("raw", "this session sends raw frames")])
async def test_a_session_that_a_program_opened_can_be_watched_or_says_why_not(
    gate: Gateway, webcam: Path, form: str, said: str
) -> None:
    async with client(gate) as talker, chromium(webcam) as browser:
        await talker.send(init(lossless=True, realtime_output_format=form, framing="current"))
        await talker.frames(source(1))
        await talker.chunk()
        session = next(iter(gate.hub.sessions))
        async with opened(browser, f"{gate.http}/?watch={session}") as viewer:
            busy = [asyncio.create_task(work(talker)) for work in (push_for_ever, read_for_ever)]
            if said:
                await viewer.locator(f"#trouble:has-text('{said}')").wait_for()
            else:
                await shown(viewer, "invert")
                assert await viewer.evaluate("document.getElementById('view').width") == SIZE
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)


async def push_for_ever(talker: Client) -> None:
    while True:
        await talker.frames(source(2))


async def read_for_ever(talker: Client) -> None:
    while True:
        await talker.chunk()
