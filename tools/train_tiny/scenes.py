"""Procedural video that can be rendered at any time: a moving camera over a picture, and moving objects with masks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train_tiny.prompts import CLASSES, COLOURS, PLACES

MOVING = 3
ADDED = MOVING
"""Slot of the object that an edit adds; slot 0 holds the object that edits name."""

ANGLES = 512
EDGE = 1.2
RING_HOLE = 0.55
CENTRE_RADIUS = 36.0
HASTE = 6.0
"""How much faster than drawn the fastest scenes move that a VAE is trained on."""

PLACE_COLOURS = {
    "green screen": ((0.05, 0.75, 0.20), (0.05, 0.75, 0.20)),
    "white studio": ((0.97, 0.97, 0.97), (0.80, 0.80, 0.82)),
    "sunset sky": ((0.35, 0.15, 0.45), (1.00, 0.60, 0.20)),
    "night sky": ((0.01, 0.01, 0.06), (0.08, 0.10, 0.30)),
    "deep sea": ((0.10, 0.55, 0.65), (0.00, 0.10, 0.25)),
}
"""Colours at the top and at the bottom of each background that can be asked for."""


@dataclass(frozen=True)
class Scenes:
    """B scenes. A wave is (base, amplitude, radians per frame, phase), so every motion goes on for ever.

    picture (B,) index into the bank; place (B,) 0 for the picture, else 1 + index into PLACES; camera (B, 4, 4) waves
    of x, y, scale, angle; kind (B, K), visible (B, K), colour (B, K, 3) and path (B, K, 4, 4), waves of x, y, radius
    (pixels) and angle, of each object.
    """

    picture: Tensor
    place: Tensor
    camera: Tensor
    kind: Tensor
    visible: Tensor
    colour: Tensor
    path: Tensor

    def __getitem__(self, index: Tensor) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> "Scenes":
        return Scenes(*(getattr(self, field.name).to(device) for field in fields(self)))

    def copy(self) -> "Scenes":
        return Scenes(*(getattr(self, field.name).clone() for field in fields(self)))


def draw_scenes(
    rng: np.random.Generator, objects: np.ndarray, pictures: int, leaves: int, size: tuple[int, int]
) -> Scenes:
    """Random scenes with `objects` (B,) moving objects each; scenes with objects never lie on dead leaves."""
    batch, (height, width) = len(objects), size
    picture = np.where(objects > 0, rng.integers(leaves, pictures, batch), rng.integers(0, pictures, batch))
    kind = np.argsort(rng.random((batch, len(CLASSES))), axis=1)[:, : MOVING + 1]
    palette = np.array(list(COLOURS.values()))
    colour = palette[rng.integers(0, len(palette), (batch, MOVING + 1))] + rng.normal(0, 0.06, (batch, MOVING + 1, 3))
    visible = np.arange(MOVING + 1)[None] < objects[:, None]
    tensors = (picture, np.zeros(batch), camera_waves(rng, batch), kind, visible, colour.clip(0, 1))
    path = object_waves(rng, batch, height, width)
    kinds = (torch.int64, torch.int64, torch.float32, torch.int64, torch.float32, torch.float32)
    return Scenes(
        *(torch.tensor(x, dtype=kind) for x, kind in zip(tensors, kinds, strict=True)), torch.tensor(path).float()
    )


def wave(
    rng: np.random.Generator, shape: tuple[int, ...], base: np.ndarray, amplitude: float, speed: float
) -> np.ndarray:
    """(…, 4) with the given base, amplitude and speed up to the given ones, and any phase."""
    parts = (rng.uniform(0, amplitude, shape), rng.uniform(0.1, 1, shape) * speed, rng.uniform(0, 2 * math.pi, shape))
    return np.stack([np.broadcast_to(base, shape), *parts], axis=-1)


def camera_waves(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Half of the cameras pan, zoom and turn, the others stand still but for a slight drift."""
    moving = np.where(rng.random(batch) < 0.6, 1.0, 0.05)[:, None]
    x, y = (wave(rng, (batch,), rng.uniform(-0.3, 0.3, batch), 0.25, 0.03) for _ in range(2))
    scale = wave(rng, (batch,), rng.uniform(0.38, 0.8, batch), 0.10, 0.03)
    angle = wave(rng, (batch,), rng.uniform(-0.15, 0.15, batch), 0.12, 0.03)
    waves = np.stack([x, y, scale, angle], axis=1)
    waves[..., 1] *= moving
    return waves


def object_waves(rng: np.random.Generator, batch: int, height: int, width: int) -> np.ndarray:
    """Paths that stay inside the frame; sizes from a sixth to a third of its height."""
    shape = (batch, MOVING + 1)
    x = wave(rng, shape, rng.uniform(0.25, 0.75, shape) * width, 0.22 * width, 0.06)
    y = wave(rng, shape, rng.uniform(0.3, 0.7, shape) * height, 0.18 * height, 0.06)
    radius = wave(rng, shape, rng.uniform(0.17, 0.31, shape) * height, 4.0, 0.05)
    angle = wave(rng, shape, rng.uniform(-0.4, 0.4, shape), 0.5, 0.05)
    path = np.stack([x, y, radius, angle], axis=2)
    path[:, ADDED] = [
        [width / 2, 0, 0, 0],
        [height / 2, 0, 0, 0],
        [CENTRE_RADIUS * height / 144, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    return path


def hurried(rng: np.random.Generator, scenes: Scenes) -> Scenes:
    """The scenes, half of them moving faster, camera and objects alike: as fast as film does at times."""
    batch = len(scenes.picture)
    pace = torch.from_numpy(np.where(rng.random(batch) < 0.5, HASTE ** rng.random(batch), 1.0)).float()
    return with_speeds(scenes, lambda speed: speed * pace.view(-1, *[1] * (speed.ndim - 1)))


def looped(scenes: Scenes, frames: int) -> Scenes:
    """The scenes with every speed moved to the nearest one with which all comes round after `frames` frames."""
    turn = 2 * math.pi / frames
    return with_speeds(scenes, lambda speed: (speed / turn).round().clamp_min(1) * turn)


def exchanged(scenes: Scenes) -> Scenes:
    """The scenes with the first two objects of each in each other's place, so that edits name the other one."""
    result = scenes.copy()
    for each in (result.kind, result.visible, result.colour, result.path):
        each[:, [0, 1]] = each[:, [1, 0]]
    return result


def with_speeds(scenes: Scenes, change: Callable[[Tensor], Tensor]) -> Scenes:
    result = scenes.copy()
    for waves in (result.camera, result.path):
        waves[..., 2] = change(waves[..., 2])
    return result


def outlines(device: torch.device) -> Tensor:
    """(classes, ANGLES): the radius of every class at every angle, for a unit size, with y pointing down."""
    angle = np.linspace(-math.pi, math.pi, ANGLES, endpoint=False)
    fold = np.abs((angle / (2 * math.pi / 5) + 0.25) % 1 - 0.5) * 2
    triangle = 0.62 / np.cos((angle + math.pi / 2 + math.pi) % (2 * math.pi / 3) - math.pi / 3).clip(0.5)
    up = -np.sin(angle)
    heart = 0.55 * (2 - 2 * up + up * np.sqrt(np.abs(np.cos(angle))) / (up + 1.4)).clip(0.05) ** 0.75
    tables = {
        "ball": np.ones(ANGLES),
        "box": 0.8 / np.maximum(np.abs(np.cos(angle)), np.abs(np.sin(angle))),
        "star": 0.45 + 0.65 * fold**1.5,
        "heart": heart,
        "ring": np.ones(ANGLES),
        "triangle": triangle,
    }
    return torch.tensor(np.stack([tables[name] for name in CLASSES]), dtype=torch.float32, device=device)


class Renderer:
    """Draws scenes at any frames from a bank of pictures."""

    def __init__(self, bank: Tensor, size: tuple[int, int]) -> None:
        self.bank, self.size = bank, size
        self.device = bank.device
        self.outlines = outlines(self.device)
        self.rows = torch.arange(size[0], device=self.device).float()[:, None]
        self.columns = torch.arange(size[1], device=self.device).float()[None]
        down = torch.linspace(0, 1, size[0], device=self.device)[None, :, None]
        tops, bottoms = zip(*(PLACE_COLOURS[name] for name in PLACES), strict=True)
        top, bottom = (torch.tensor(ends, device=self.device)[:, :, None, None] for ends in (tops, bottoms))
        self.places = top + (bottom - top) * down

    def __call__(self, scenes: Scenes, frames: range) -> Tensor:
        """Video (B, 3, F, H, W) in [0, 1] of scenes on the renderer's device."""
        times = torch.arange(frames.start, frames.stop, device=self.device).float()
        video = self.background(scenes, times)
        for slot in reversed(range(MOVING + 1)):
            if slot != ADDED:
                video = self.draw(video, scenes, slot, times)
        return self.draw(video, scenes, ADDED, times)

    def background(self, scenes: Scenes, times: Tensor) -> Tensor:
        x, y, scale, angle = waves(scenes.camera, times).unbind(1)
        height, width = self.size
        u = (2 * self.columns / width - 1 + 1 / width).expand(height, width)
        v = (2 * self.rows / height - 1 + 1 / height).expand(height, width)
        cos, sin = (scale * angle.cos())[..., None, None], (scale * angle.sin())[..., None, None]
        aspect = width / height
        grid = torch.stack(
            [x[..., None, None] + cos * u - sin * v / aspect, y[..., None, None] + sin * u * aspect + cos * v], -1
        )
        picture = self.bank[scenes.picture].float()
        video = F.grid_sample(picture, grid.flatten(1, 2), padding_mode="reflection", align_corners=False)
        video = video.unflatten(2, (len(times), height))
        chosen = (scenes.place > 0)[:, None, None, None, None]
        return torch.where(chosen, self.places[(scenes.place - 1).clamp_min(0)][:, :, None], video)

    def draw(self, video: Tensor, scenes: Scenes, slot: int, times: Tensor) -> Tensor:
        """The video with one object of every scene painted over it, lit from the upper left."""
        x, y, radius, angle = (part[..., None, None] for part in waves(scenes.path[:, slot], times).unbind(1))
        dx, dy = self.columns - x, self.rows - y
        distance = (dx.square() + dy.square()).sqrt()
        turned = torch.atan2(dy, dx) - angle
        index = ((turned / (2 * math.pi) + 0.5) * ANGLES).long() % ANGLES
        kind = scenes.kind[:, slot, None, None, None]
        outline = self.outlines.flatten()[kind * ANGLES + index] * radius
        mask = ((outline - distance) / EDGE + 0.5).clamp(0, 1)
        hole = torch.where(kind == CLASSES.index("ring"), RING_HOLE * radius, radius.new_tensor(-2.0))
        mask = mask * ((distance - hole) / EDGE + 0.5).clamp(0, 1) * scenes.visible[:, slot, None, None, None]
        light = 1.05 - 0.35 * ((dx / radius + 0.4).square() + (dy / radius + 0.4).square()).sqrt().clamp(0, 1.6)
        paint = scenes.colour[:, slot, :, None, None, None] * light[:, None]
        return torch.lerp(video, paint.clamp(0, 1), mask[:, None])


def waves(parameters: Tensor, times: Tensor) -> Tensor:
    """(B, N, 4) to the values (B, N, F) at `times` (F,)."""
    base, amplitude, speed, phase = parameters.unsqueeze(-1).unbind(2)
    return base + amplitude * torch.sin(speed * times + phase)


def edited(scenes: Scenes, keys: list[str]) -> Scenes:
    """What the scenes look like after the edits of `keys` that change a scene; other keys leave theirs alone."""
    result = scenes.copy()
    for row, key in enumerate(keys):
        family, *words = key.split("/")
        if family == "recolour":
            result.colour[row, 0] = torch.tensor(COLOURS[words[1]])
        elif family == "remove":
            result.visible[row, 0] = 0
        elif family == "background":
            result.place[row] = 1 + PLACES.index(words[0])
        elif family == "add":
            result.visible[row, ADDED] = 1
            result.kind[row, ADDED] = CLASSES.index(words[0])
            result.colour[row, ADDED] = torch.tensor(COLOURS[words[1]])
    return result
