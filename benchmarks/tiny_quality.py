"""What the tiny checkpoint is worth through the real server, on held-out video with computed edits: `make quality`.

Streams every kind of edit with an instruction that was not trained on, and with a wrong one, then long streams, and
writes benchmarks/results/tiny_quality.json and docs/tiny-edits.jpg.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image
from records import psnr
from rich.console import Console
from rich.progress import track

from sana_build.server import Ports, TritonServer
from sana_client.pipeline import Piece, edit
from sana_client.session import Session, connect
from sana_export.pixels import pixels_to_uint8
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
    paired_border_ratio,
    real_pair,
    scene_pair,
    wrong,
)
from train_tiny.phrasings import KEEP, STYLES  # noqa: E402
from train_tiny.prompts import keys as edit_keys  # noqa: E402
from train_tiny.prompts import phrases  # noqa: E402

REPOSITORY = Path("out/repo")
CLIP = ROOT / "assets" / "big-buck-bunny.mp4"
RESULTS = ROOT / "benchmarks" / "results" / "tiny_quality.json"
SHEET = ROOT / "docs" / "tiny-edits.jpg"
CHUNKS = 8
KEYS, SCENES = 3, 3
"""Edits of every family that changes objects, and generated scenes for each: in one alone, where its objects happen to
move says more than the edit."""

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


@dataclass(frozen=True)
class Streamed:
    """One stream, uint8 (F, H, W, 3): how it should be edited, and how it was with the right and a wrong instruction.

    `later` is the edit of the same stream begun `SHIFT` frames later.
    """

    source: np.ndarray
    target: np.ndarray
    edited: np.ndarray
    refused: np.ndarray
    later: np.ndarray
    seconds: float


def edits(url: str, geometry: StreamGeometry, clip: torch.Tensor) -> tuple[list[dict], list[np.ndarray]]:
    """One row per edit, and one picture band per edit: source, truth and edit of two moments."""
    world = held_out_world(clip, SEED)
    looks, objects = [*STYLES, KEEP], [key for family in OBJECT_FAMILIES for key in drawn(family, world.rng)]
    rows, bands = [], []
    for keys, scenes in ((looks, 1), (objects, SCENES)):
        mistaken = wrong(keys, world.rng)
        for key, other in track(list(zip(keys, mistaken, strict=True)), "editing"):
            pairs = [real_pair(clip, [key]) if keys is looks else scene_pair(world, [key]) for _ in range(scenes)]
            streams = [streamed(url, geometry, pair, key, other) for pair in pairs]
            rows.append(row(key, streams))
            bands.append(band(streams[0]))
            print({name: round(value, 2) if isinstance(value, float) else value for name, value in rows[-1].items()})
    return rows, bands


def drawn(family: str, rng: np.random.Generator) -> list[str]:
    """Different edits of one family."""
    own = [key for key in edit_keys() if key.startswith(f"{family}/")]
    return [str(key) for key in rng.choice(own, KEYS, replace=False)]


def streamed(url: str, geometry: StreamGeometry, pair: Pair, key: str, other: str) -> Streamed:
    """A stream edited as `key` asks, as `other` asks, and once more from a later moment."""
    source, target = rendered(pair, geometry, CHUNKS)
    prompt = phrases(key, held_out=True)[0]
    edited, seconds = asyncio.run(served(url, geometry, source, prompt))
    refused, _ = asyncio.run(served(url, geometry, source, phrases(other, held_out=True)[0]))
    later, _ = asyncio.run(served(url, geometry, source[SHIFT:-SHIFT], prompt))
    return Streamed(source, target, edited, refused, later, seconds)


def long_streams(url: str, geometry: StreamGeometry, clip: torch.Tensor) -> dict[str, list[float]]:
    """PSNR of every chunk of long streams, per edit; the scenes come round, so two of the chunks show the same."""
    world = held_out_world(clip, SEED + 1)
    drift = {}
    for key in track(LONG_KEYS, "long streams"):
        streams = [long_stream(url, geometry, scene_pair(world, [key], LOOP), key) for _ in range(SCENES)]
        drift[key] = [mean(chunks) for chunks in zip(*streams, strict=True)]
    return drift


def long_stream(url: str, geometry: StreamGeometry, pair: Pair, key: str) -> list[float]:
    source, target = rendered(pair, geometry, LONG)
    edited, _ = asyncio.run(served(url, geometry, source, phrases(key, held_out=True)[0]))
    return [psnr(e, t) for e, t in zip(cut(edited, geometry), cut(target, geometry), strict=True)]


def rendered(pair: Pair, geometry: StreamGeometry, chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and true edit, uint8 (F, H, W, 3), of as many chunks."""
    videos: tuple[list, list] = ([], [])
    start = 0
    for index in range(chunks):
        frames = geometry.chunk(index).frames
        for video, part in zip(videos, pair(range(start, start + frames)), strict=True):
            video.append(pixels_to_uint8(part)[0].numpy())
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


def row(key: str, streams: Sequence[Streamed]) -> dict:
    """Means of PSNR against the truth: of sources, edits and wrongly prompted edits; and the jump at chunk borders."""
    before, after = [psnr(s.source, s.target) for s in streams], [psnr(s.edited, s.target) for s in streams]
    gains = [late - early for early, late in zip(before, after, strict=True)]
    changes = torch.stack([change(s.edited, s.target) for s in streams])
    later = torch.stack([change(s.later, s.target[SHIFT:-SHIFT]) for s in streams])
    return {
        "edit": key,
        "prompt": phrases(key, held_out=True)[0],
        "source": mean(before),
        "edited": mean(after),
        "gain": mean(gains),
        "least": min(gains),
        "wrong": mean(psnr(s.refused, s.target) for s in streams),
        "border_raw": border_ratio(changes),
        "border": paired_border_ratio(changes, later),
        "fps": max(len(s.source) / s.seconds for s in streams),
    }


def change(shown: np.ndarray, truth: np.ndarray) -> torch.Tensor:
    """Mean absolute change (F - 1,) of the error from frame to frame."""
    error = shown.astype(np.float32) - truth.astype(np.float32)
    return torch.from_numpy(np.abs(np.diff(error, axis=0)).mean(axis=(1, 2, 3)))


def band(stream: Streamed) -> np.ndarray:
    """Source, truth and edit side by side, at a third and at the end of the stream."""
    moments = (len(stream.source) // 3, len(stream.source) - 1)
    videos = (stream.source, stream.target, stream.edited)
    return np.concatenate([np.concatenate([video[i] for video in videos], axis=1) for i in moments], axis=1)


if __name__ == "__main__":
    main()
