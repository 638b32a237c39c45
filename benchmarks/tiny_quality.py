"""What the tiny checkpoint is worth through the real server, on held-out video with computed edits: `make quality`.

Streams every kind of edit with an instruction that was not trained on, and with a wrong one, then long streams, and
writes benchmarks/results/tiny_quality.json and docs/tiny-edits.jpg.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from records import psnr
from rich.console import Console
from rich.progress import track

from sana_build.server import Ports, TritonServer
from sana_client.pipeline import Piece, edit
from sana_client.session import Session, connect
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.stages import Request
from sana_runtime.triton_backend import load_stage

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from train_tiny.collect import held_out_clip  # noqa: E402
from train_tiny.evaluate import (  # noqa: E402
    LONG,
    LOOP,
    OBJECT_FAMILIES,
    SHIFT,
    Pair,
    border_ratio,
    held_out_world,
    object_keys,
    paired_border_ratio,
    real_pair,
    scene_pair,
    wrong,
)
from train_tiny.phrasings import KEEP, STYLES  # noqa: E402
from train_tiny.prompts import phrases  # noqa: E402

REPOSITORY = Path("out/repo")
CLIP = ROOT / "assets" / "big-buck-bunny.mp4"
RESULTS = ROOT / "benchmarks" / "results" / "tiny_quality.json"
SHEET = ROOT / "docs" / "tiny-edits.jpg"
CHUNKS = 8
LONG_KEYS = ("sepia", "night", KEEP, "recolour/ball/red", "background/deep sea")
SEED = 30_000


def main() -> None:
    console = Console()
    manifest = Manifest.read(REPOSITORY)
    clip = torch.from_numpy(held_out_clip(CLIP))
    with TritonServer(REPOSITORY, Ports.free(), Path("out/quality-server.log")) as server:
        rows, bands = edits(server.grpc_url, manifest.geometry, clip)
        drift = long_streams(server.grpc_url, manifest.geometry, clip)
    vae = reconstruction(manifest.geometry, clip.numpy())
    figures = {"checkpoint": manifest.checkpoint, "chunks": CHUNKS, "vae": vae, "edits": rows, "long": drift}
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    sheet = Image.fromarray(np.concatenate(bands))
    sheet.resize((sheet.width * 9 // 16, sheet.height * 9 // 16)).save(SHEET, quality=80)
    console.print(f"wrote {RESULTS.relative_to(ROOT)} and {SHEET.relative_to(ROOT)}")


def reconstruction(geometry: StreamGeometry, clip: np.ndarray) -> float:
    """PSNR of the clip through the built VAE engines alone, chunk by chunk."""
    encoder, decoder = (load_stage(name, REPOSITORY, "1") for name in ("vae_encoder", "vae_decoder"))
    chunks = [chunk for chunk in cut(clip, geometry) if len(chunk) in (geometry.first_frames, geometry.steady_frames)]
    shown = []
    for index, frames in enumerate(chunks):
        asked = {"parameters": {"chunk": index}, "correlation": "1", "start": index == 0}
        latent = encoder.run(Request({"frames": frames[None]}, **asked))["source"]
        shown.append(decoder.run(Request({"latent": latent}, **asked))["edited"][0].copy())
    return psnr(np.concatenate(shown), np.concatenate(chunks))


def edits(url: str, geometry: StreamGeometry, clip: torch.Tensor) -> tuple[list[dict], list[np.ndarray]]:
    """One row per edit, and one picture band per edit: source, truth and edit of three moments."""
    world = held_out_world(clip, SEED)
    looks = [*STYLES, KEEP]
    objects = [key for family in OBJECT_FAMILIES for key in object_keys(family, world.rng, 3)]
    rows, bands = [], []
    for keys, make in ((looks, lambda keys: real_pair(clip, keys)), (objects, lambda keys: scene_pair(world, keys))):
        mistaken = wrong(keys, world.rng)
        for key, other in track(list(zip(keys, mistaken, strict=True)), "editing"):
            source, target = rendered(make([key]), geometry, CHUNKS)
            prompt = phrases(key, held_out=True)[0]
            edited, seconds = asyncio.run(served(url, geometry, source, prompt))
            refused, _ = asyncio.run(served(url, geometry, source, phrases(other, held_out=True)[0]))
            rows.append(row(key, prompt, source, target, edited, refused) | {"fps": len(source) / seconds})
            later, wanted = source[SHIFT:-SHIFT], target[SHIFT:-SHIFT]
            again, _ = asyncio.run(served(url, geometry, later, prompt))
            rows[-1]["border"] = paired_border_ratio(change(edited, target)[None], change(again, wanted)[None])
            bands.append(band(source, target, edited))
            print({name: round(value, 2) if isinstance(value, float) else value for name, value in rows[-1].items()})
    return rows, bands


def long_streams(url: str, geometry: StreamGeometry, clip: torch.Tensor) -> dict[str, list[float]]:
    """PSNR of every chunk of a long stream, per edit; the scene comes round, so two of the chunks show the same."""
    world = held_out_world(clip, SEED + 1)
    drift = {}
    for key in track(LONG_KEYS, "long streams"):
        source, target = rendered(scene_pair(world, [key], LOOP), geometry, LONG)
        edited, _ = asyncio.run(served(url, geometry, source, phrases(key, held_out=True)[0]))
        drift[key] = [psnr(e, t) for e, t in zip(cut(edited, geometry), cut(target, geometry), strict=True)]
    return drift


def rendered(pair: Pair, geometry: StreamGeometry, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and true edit, uint8 (F, H, W, 3), of as many chunks."""
    videos: tuple[list, list] = ([], [])
    start = 0
    for index in range(chunks):
        frames = geometry.chunk(index).frames
        for video, part in zip(videos, pair(range(start, start + frames)), strict=True):
            pixels = (127.5 * part[0] + 127.5).clamp(0, 255).to(torch.uint8)
            video.append(pixels.permute(1, 2, 3, 0).numpy())
        start += frames
    source, target = (np.concatenate(video) for video in videos)
    return source, target


def cut(video: np.ndarray, geometry: StreamGeometry) -> list[np.ndarray]:
    first, steady = geometry.first_frames, geometry.steady_frames
    return np.split(video, range(first, len(video), steady))


async def served(url: str, geometry: StreamGeometry, source: np.ndarray, prompt: str) -> tuple[np.ndarray, float]:
    """The edit of a video through the server, and the seconds it took."""
    chunks = cut(source, geometry)
    async with connect(url) as session:
        started = time.perf_counter()
        frames = [frames async for frames in answers(session, chunks, prompt)]
        return np.concatenate(frames), time.perf_counter() - started


async def answers(session: Session, chunks: list[np.ndarray], prompt: str) -> AsyncIterator[np.ndarray]:
    async def pieces() -> AsyncIterator[Piece]:
        for index, frames in enumerate(chunks):
            yield Piece(index, frames, prompt, index == len(chunks) - 1)

    async for _, answer in edit(session, pieces()):
        yield answer.frames


def row(
    key: str,
    prompt: str,
    source: np.ndarray,
    target: np.ndarray,
    edited: np.ndarray,
    refused: np.ndarray,
) -> dict:
    """PSNR against the truth of the source, the edit and the wrongly prompted edit; and the jump at chunk borders."""
    before, after = psnr(source, target), psnr(edited, target)
    return {
        "edit": key,
        "prompt": prompt,
        "source": before,
        "edited": after,
        "gain": after - before,
        "wrong": psnr(refused, target),
        "border_raw": border_ratio(change(edited, target)[None]),
    }


def change(shown: np.ndarray, truth: np.ndarray) -> torch.Tensor:
    """Mean absolute change (F - 1,) of the error from frame to frame."""
    error = shown.astype(np.float32) - truth.astype(np.float32)
    return torch.from_numpy(np.abs(np.diff(error, axis=0)).mean(axis=(1, 2, 3)))


def band(source: np.ndarray, target: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """Source, truth and edit side by side, at a third and at the end of the stream."""
    moments = (len(source) // 3, len(source) - 1)
    return np.concatenate([np.concatenate([v[i] for v in (source, target, edited)], axis=1) for i in moments], axis=1)


if __name__ == "__main__":
    main()
