"""Endless pairs of source and edited video, chunk by chunk, as pixels and as latents of a frozen VAE."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sana_export.vae import VAE, State
from sana_runtime.geometry import StreamGeometry
from train_tiny.edits import SHARES, STILL_SHARES, draw_keys, styled
from train_tiny.model import mixed_precision
from train_tiny.pictures import leaf_count
from train_tiny.prompts import CLASSES, keys, reverse
from train_tiny.scenes import MOVING, Renderer, Scenes, draw_scenes, edited, exchanged, hurried

SCENE_EDITS = ("recolour", "remove", "add", "background")
OBJECTS = (0.2, 0.15, 0.3, 0.35)
"""How often a scene has 0, 1, 2 or 3 objects: with several, it has to be seen which one is meant."""

MOMENTS = 500
"""Frames of a scene at which a clip begins, or that a still is taken from."""


class PromptBook:
    """Tokenised phrasings by key."""

    def __init__(self, data: Mapping[str, np.ndarray], device: torch.device) -> None:
        self.ids = torch.from_numpy(data["prompt_ids"].astype(np.int64)).to(device)
        self.mask = torch.from_numpy(data["prompt_mask"].astype(np.int64)).to(device)
        self.rows = {
            held_out: {
                key: np.flatnonzero((data["prompt_key"] == index) & (data["prompt_held_out"] == held_out))
                for index, key in enumerate(keys())
            }
            for held_out in (False, True)
        }

    def draw(self, rng: np.random.Generator, wanted: list[str], held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, N) of a random phrasing for every key."""
        rows = [rng.choice(self.rows[held_out][key]) for key in wanted]
        index = torch.from_numpy(np.array(rows)).to(self.ids.device, non_blocking=True)
        return self.ids[index], self.mask[index]


@dataclass(frozen=True)
class Chunk:
    """One chunk of B streams: latents (B, C, T, h, w), the edit of each stream, and the first latent's position."""

    source: Tensor
    target: Tensor
    keys: list[str]
    start: int

    @property
    def reversed_keys(self) -> list[str]:
        return [reverse(key) for key in self.keys]


class World:
    """Where scenes come from: one bank of pictures, one random generator, one frame size."""

    def __init__(self, bank: Tensor, seed: int, geometry: StreamGeometry) -> None:
        self.renderer = Renderer(bank, (geometry.height, geometry.width))
        self.rng = np.random.default_rng(seed)
        self.geometry = geometry
        self.pictures, self.leaves = len(bank), leaf_count(bank)

    @property
    def device(self) -> torch.device:
        return self.renderer.device

    def scenes(self, batch: int, objects: np.ndarray | None = None) -> Scenes:
        """Random scenes, on the CPU; how many objects they have is drawn unless `objects` (B,) are given."""
        if objects is None:
            objects = self.rng.choice(len(OBJECTS), batch, p=OBJECTS)
        size = (self.geometry.height, self.geometry.width)
        return draw_scenes(self.rng, objects, self.pictures, self.leaves, size)

    def keys(self, scenes: Scenes, shares: Mapping[str, float] = SHARES) -> list[str]:
        """A random edit for every scene, of the families in `shares`."""
        shown = zip(scenes.visible[:, 0].tolist(), scenes.kind[:, 0].tolist(), strict=True)
        return draw_keys(self.rng, [CLASSES[kind] if visible else None for visible, kind in shown], shares)

    def pair(self, scenes: Scenes, wanted: list[str], frames: range) -> tuple[Tensor, Tensor]:
        """Source and edited video (B, 3, F, H, W) in [-1, 1]."""
        source = self.renderer(scenes.to(self.device), frames)
        target = styled(source, wanted)
        rows = torch.tensor([row for row, key in enumerate(wanted) if key.split("/")[0] in SCENE_EDITS])
        if len(rows):
            changed = edited(scenes, wanted)[rows].to(self.device)
            target[rows.to(self.device)] = self.renderer(changed, frames)
        return 2 * source - 1, 2 * target - 1

    def clips(self, batch: int, frames: int) -> Tensor:
        """Random clips (B, 3, F, H, W) in [-1, 1] for the VAE: half of them edited, half of them fast."""
        scenes = hurried(self.rng, self.scenes(batch))
        start = int(self.rng.integers(MOMENTS))
        source, target = self.pair(scenes, self.keys(scenes), range(start, start + frames))
        half = torch.arange(batch, device=self.device) % 2 == 0
        return torch.where(half[:, None, None, None, None], source, target)


class ClipPool:
    """Rendered clips that are replaced a few at a time, so that a step costs no rendering of its own."""

    def __init__(self, world: World, size: int, frames: int, batch: int = 16) -> None:
        self.world, self.batch = world, batch
        self.clips = torch.cat([world.clips(batch, frames).half() for _ in range(size // batch)])
        self.oldest = 0

    def refresh(self) -> None:
        """Replace the oldest clips by new ones."""
        rows = slice(self.oldest, self.oldest + self.batch)
        self.clips[rows] = self.world.clips(self.batch, self.clips.shape[2]).half()
        self.oldest = (self.oldest + self.batch) % len(self.clips)

    def draw(self, batch: int, frames: int, size: tuple[int, int]) -> Tensor:
        """Random windows (batch, 3, frames, *size) in time and space."""
        spare = [have - want for have, want in zip(self.clips.shape[2:], (frames, *size), strict=True)]
        drawn = []
        for row in self.world.rng.integers(0, len(self.clips), batch).tolist():
            t, y, x = (int(self.world.rng.integers(0, most + 1)) for most in spare)
            drawn.append(self.clips[row, :, t : t + frames, y : y + size[0], x : x + size[1]])
        return torch.stack(drawn).float()


class PairStream:
    """Streams of B scenes, of the same age; each call of `next` renders and encodes one more chunk."""

    def __init__(self, world: World, vae: VAE, scenes: Scenes, switch: float = 0) -> None:
        self.world, self.vae, self.scenes, self.switch = world, vae, scenes, switch
        self.keys = world.keys(scenes)
        self.index = 0
        self.state: State | None = None

    def next(self) -> tuple[Chunk, Tensor]:
        """The next chunk, and the true edit (B, 3, F, H, W) in [-1, 1] that its target is of.

        With probability `switch` every stream gets another edit from here on.
        """
        geometry = self.world.geometry
        chunk = geometry.chunk(self.index)
        if self.index and self.world.rng.random() < self.switch:
            self.keys = self.world.keys(self.scenes)
        first = 0 if self.index == 0 else geometry.first_frames + (self.index - 1) * geometry.steady_frames
        pair = self.world.pair(self.scenes, self.keys, range(first, first + chunk.frames))
        with torch.no_grad(), mixed_precision(self.world.device):
            latents, self.state = self.vae.encoder(torch.cat(pair), self.state)
        source, target = latents.float().chunk(2)
        self.index += 1
        return Chunk(source, target, self.keys, chunk.start), pair[1]


class PairPool:
    """Encoded streams of one length, renewed a batch at a time: to render and encode them costs more than to train."""

    def __init__(self, world: World, vae: VAE, size: int, length: int, batch: int, switch: float) -> None:
        self.world, self.vae, self.length, self.batch, self.switch = world, vae, length, batch, switch
        self.size, self.oldest = size, 0
        recorded = self.record()
        self.chunks = [room(chunk, size) for chunk in recorded]
        self.keep(recorded)
        for _ in range(size // batch - 1):
            self.refresh()

    def record(self) -> list[Chunk]:
        stream = PairStream(self.world, self.vae, self.world.scenes(self.batch), self.switch)
        return [stream.next()[0] for _ in range(self.length)]

    def refresh(self) -> None:
        """Replace the oldest batch of streams."""
        self.keep(self.record())

    def keep(self, recorded: list[Chunk]) -> None:
        rows = slice(self.oldest, self.oldest + self.batch)
        for place, chunk in zip(self.chunks, recorded, strict=True):
            place.source[rows], place.target[rows], place.keys[rows] = chunk.source, chunk.target, chunk.keys
        self.oldest = (self.oldest + self.batch) % self.size

    def rows(self, batch: int) -> np.ndarray:
        """Which streams to draw."""
        return self.world.rng.integers(0, self.size, batch)

    def draw(self, batch: int) -> list[Chunk]:
        """The chunks of `batch` random streams of the pool, which may start as different scenes."""
        rows = self.rows(batch)
        index = torch.from_numpy(rows).to(self.world.device, non_blocking=True)
        return [
            Chunk(c.source[index].float(), c.target[index].float(), [c.keys[row] for row in rows], c.start)
            for c in self.chunks
        ]


class StillPool(PairPool):
    """Single frames in which mostly one of several objects is edited, every scene twice, with another object named.

    Which object is meant is what takes longest to learn, and a still shows it at a tenth of a stream's cost.
    """

    def __init__(
        self, world: World, vae: VAE, size: int, batch: int, shares: Mapping[str, float] = STILL_SHARES
    ) -> None:
        self.shares = shares
        super().__init__(world, vae, size, 1, batch, 0)

    def record(self) -> list[Chunk]:
        """Stills of `batch` / 2 scenes; the two of a scene are neighbours."""
        world, half = self.world, self.batch // 2
        scenes = world.scenes(half, world.rng.integers(2, MOVING + 1, half))
        moment = int(world.rng.integers(MOMENTS))
        videos, names = [], []
        for shown in (scenes, exchanged(scenes)):
            names.append(world.keys(shown, self.shares))
            videos.append(torch.stack(world.pair(shown, names[-1], range(moment, moment + 1)), 1))
        pairs = torch.stack(videos, 1).flatten(0, 2)
        with torch.no_grad(), mixed_precision(world.device):
            latents, _ = self.vae.encoder(pairs)
        source, target = latents.float().unflatten(0, (self.batch, 2)).unbind(1)
        return [Chunk(source, target, [name for both in zip(*names, strict=True) for name in both], 0)]

    def rows(self, batch: int) -> np.ndarray:
        """Both stills of `batch` / 2 random scenes."""
        first = 2 * self.world.rng.integers(0, self.size // 2, batch // 2)
        return np.stack([first, first + 1], 1).ravel()


def room(chunk: Chunk, size: int) -> Chunk:
    """Space for such a chunk of `size` streams, at half the precision."""
    shape = (size, *chunk.source.shape[1:])
    source, target = (torch.empty(shape, dtype=torch.bfloat16, device=chunk.source.device) for _ in range(2))
    return Chunk(source, target, [""] * size, chunk.start)
