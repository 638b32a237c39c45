"""Pictures of the page on a desk and on a phone: the shipped clip as a webcam, edited live, in a headless Chromium.

sana-gateway up out/repo --media assets
python benchmarks/gateway_picture.py http://127.0.0.1:8080 --prompt "Turn day into night"
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The fake webcam of the page's tests.
sys.path.insert(0, str(ROOT / "tests" / "gateway"))

from browsers import chromium, write_webcam  # noqa: E402

CLIP = ROOT / "assets" / "big-buck-bunny.mp4"
SIZE = {"width": 1120, "height": 800}
PHONE = {"width": 390, "height": 844}
CHUNKS = 5
WAIT_MS = 120000


async def picture(address: str, prompt: str, output: Path, webcam: Path) -> None:
    """Start a session, and take the picture when some chunks with this prompt were shown."""
    async with chromium(webcam) as browser:
        context = await browser.new_context(permissions=["camera"], viewport=SIZE)
        page = await context.new_page()
        page.set_default_timeout(WAIT_MS)
        await page.goto(address)
        await page.locator('#status[data-state="ready"]').wait_for()
        await page.fill("#prompt", prompt)
        await page.click("#start")
        enough = "(most) => Number(document.getElementById('chunks').textContent) > most"
        await page.wait_for_function(enough, arg=CHUNKS)
        await page.screenshot(path=output)
        await page.set_viewport_size(PHONE)
        await page.screenshot(path=output.with_stem(f"{output.stem}-phone"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--prompt", default="Turn day into night")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "live.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        webcam = write_webcam(CLIP, Path(folder) / "webcam.mjpeg")
        asyncio.run(picture(options.address, options.prompt, options.output, webcam))


if __name__ == "__main__":
    main()
