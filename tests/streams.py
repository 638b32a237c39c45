"""Streams of made-up video through a served model, and the same through PyTorch alone."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import numpy as np
import torch

from sana_client.pipeline import Piece, edit
from sana_client.session import Limits, connect
from sana_export.pipeline import OfflinePipeline
from sana_runtime.geometry import StreamGeometry


def moving_bars(geometry: StreamGeometry, chunks: int, seed: int) -> list[np.ndarray]:
    """uint8 (F, H, W, 3) per chunk: coloured bars that drift, another pattern for every seed."""
    total = sum(geometry.chunk(i).frames for i in range(chunks))
    t, y, x = np.meshgrid(np.arange(total), np.arange(geometry.height), np.arange(geometry.width), indexing="ij")
    speed = np.random.default_rng(seed).uniform(0.05, 0.3, (3, 3))
    waves = [127 + 120 * np.sin(a * t + b * y + c * x) for a, b, c in speed]
    video = np.stack(waves, -1).astype(np.uint8)
    borders = np.cumsum([geometry.chunk(i).frames for i in range(chunks)])[:-1]
    return np.split(video, borders)


def pieces(chunks: Sequence[np.ndarray], prompts: Sequence[str]) -> list[Piece]:
    return [Piece(i, frames, prompts[i], i == len(chunks) - 1) for i, frames in enumerate(chunks)]


async def served(url: str, work: Sequence[Piece], seed: int = 0, in_flight: int = 2) -> list[np.ndarray]:
    """Edited frames of every piece, through the server at `url`."""

    async def source() -> AsyncIterator[Piece]:
        for piece in work:
            yield piece

    async with connect(url, seed=seed, limits=Limits(in_flight=in_flight)) as session:
        return [answer.frames async for _, answer in edit(session, source())]


def served_together(url: str, works: Sequence[Sequence[Piece]]) -> list[list[np.ndarray]]:
    """Several streams at once, their chunks interleaved by the server."""

    async def together() -> list[list[np.ndarray]]:
        return await asyncio.gather(*(served(url, work) for work in works))

    return asyncio.run(together())


def offline(pipeline: OfflinePipeline, work: Sequence[Piece], seed: int = 0) -> list[np.ndarray]:
    """Edited frames of every piece, in PyTorch without a server."""
    chunks = ((torch.from_numpy(piece.frames)[None], piece.prompt) for piece in work)
    return [frames[0].numpy() for frames in pipeline.edit(chunks, seed)]


def share_within_one(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Share of all values that are at most 1/255 apart."""
    difference = np.concatenate(
        [np.abs(a.astype(int) - b.astype(int)).ravel() for a, b in zip(found, wanted, strict=True)]
    )
    return float((difference <= 1).mean())
