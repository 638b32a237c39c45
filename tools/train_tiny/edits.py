"""The looks that can be asked for, as functions of the pixels alone, and the random choice of an edit for a scene."""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train_tiny.phrasings import KEEP, STYLES
from train_tiny.prompts import CLASSES, COLOURS, PLACES

Look = Callable[[Tensor], Tensor]

TILE = 16
SHARES = {"style": 0.25, KEEP: 0.06, "recolour": 0.26, "remove": 0.16, "add": 0.14, "background": 0.13}
"""How often each family is drawn for a scene with objects; without any, only the ones in OPEN are.

Looks are learned soon; which object is meant takes longest.
"""

OPEN = ("style", KEEP, "add")
STILL_SHARES = {"recolour": 0.6, "remove": 0.4}
"""The same for stills, which are there to show which object is meant."""


def tint(*colour: float) -> Callable[[Tensor], Tensor]:
    return lambda video: video.new_tensor(colour)[:, None, None, None]


def luma(video: Tensor) -> Tensor:
    """(B, 1, F, H, W) of RGB (B, 3, F, H, W)."""
    red, green, blue = video.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def blurred(video: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every frame, as one matrix product per axis: no convolution has to be tuned for each size."""
    height, width = video.shape[-2:]
    return blur_matrix(height, sigma, video.device) @ (video @ blur_matrix(width, sigma, video.device).T)


@cache
def blur_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """(size, size) whose rows average a neighbourhood; pixels outside the frame repeat the edge."""
    reach = int(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    matrix = torch.zeros(size, size)
    for offset, tap in zip(range(-reach, reach + 1), taps / taps.sum(), strict=True):
        columns = (torch.arange(size) + offset).clamp(0, size - 1)
        matrix[torch.arange(size), columns] += tap
    return matrix.to(device)


def per_frame(function: Callable[[Tensor], Tensor], video: Tensor) -> Tensor:
    """A function of images (N, 3, H, W) on every frame of a video."""
    images = function(video.transpose(1, 2).flatten(0, 1))
    return images.unflatten(0, (video.shape[0], video.shape[2])).transpose(1, 2)


def sepia(video: Tensor) -> Tensor:
    return luma(video) * tint(1.10, 0.80, 0.52)(video) + tint(0.08, 0.04, 0.0)(video)


def mono(video: Tensor) -> Tensor:
    return (1.35 * (luma(video) - 0.5) + 0.5).expand_as(video)


def sketch(video: Tensor) -> Tensor:
    grey = luma(video)
    # Without the small blur, noise would turn into lines that no VAE of this size can draw.
    lines = (blurred(grey, 3.0) - blurred(grey, 0.9)).clamp_min(0)
    return (0.97 - 6.0 * lines).clamp_min(0.1).expand_as(video)


def mosaic(video: Tensor) -> Tensor:
    return per_frame(lambda x: F.interpolate(F.avg_pool2d(x, TILE), scale_factor=TILE, mode="nearest"), video)


def night(video: Tensor) -> Tensor:
    return video.pow(1.3) * tint(0.22, 0.30, 0.55)(video) + tint(0.0, 0.01, 0.05)(video)


def negative(video: Tensor) -> Tensor:
    return 1 - video


def sunset(video: Tensor) -> Tensor:
    return video * tint(0.95, 0.65, 0.30)(video) + tint(0.18, 0.06, 0.0)(video)


def frozen(video: Tensor) -> Tensor:
    return (0.6 * luma(video) + 0.2 * video) * tint(0.70, 0.95, 1.10)(video) + tint(0.14, 0.22, 0.32)(video)


def thermal(video: Tensor) -> Tensor:
    """Luma through a heat map: dark blue, purple, red, yellow, white."""
    nodes = video.new_tensor([[0.0, 0.0, 0.25], [0.5, 0.0, 0.6], [0.9, 0.15, 0.2], [1.0, 0.7, 0.0], [1.0, 1.0, 0.8]])
    position = luma(video).clamp(0, 1) * (len(nodes) - 1)
    weights = [(1 - (position - index).abs()).clamp_min(0) for index in range(len(nodes))]
    return sum(weight * node[:, None, None, None] for weight, node in zip(weights, nodes, strict=True))


def fog(video: Tensor) -> Tensor:
    return 0.35 * blurred(video, 1.5) + 0.65 * tint(0.86, 0.88, 0.90)(video)


def cartoon(video: Tensor) -> Tensor:
    """Three levels per channel with soft steps, after a blur that removes texture, with more saturation."""
    smooth = blurred(video, 2.0)
    vivid = luma(smooth) + 1.8 * (smooth - luma(smooth))
    return 0.03 + 0.48 * (torch.sigmoid(16 * (vivid - 0.33)) + torch.sigmoid(16 * (vivid - 0.66)))


def blur(video: Tensor) -> Tensor:
    return 0.85 * blurred(video, 5.0) + 0.15


LOOKS: dict[str, Look] = {
    function.__name__: function
    for function in (sepia, mono, sketch, mosaic, night, negative, sunset, frozen, thermal, fog, cartoon, blur)
}


def styled(video: Tensor, keys: list[str]) -> Tensor:
    """Video (B, 3, F, H, W) with each row in its look; keys that are no look leave theirs alone."""
    result = video.clone()
    for name, look in LOOKS.items():
        rows = [row for row, key in enumerate(keys) if key == name]
        if rows:
            index = torch.tensor(rows, device=video.device)
            result[index] = look(video[index]).clamp(0, 1)
    return result


def draw_keys(rng: np.random.Generator, things: list[str | None], shares: Mapping[str, float]) -> list[str]:
    """A random edit for every scene; `things` names the object that can be edited, None where there is none."""
    return [draw_key(rng, thing, shares) for thing in things]


def draw_key(rng: np.random.Generator, thing: str | None, shares: Mapping[str, float]) -> str:
    names = [name for name in shares if thing or name in OPEN]
    chances = np.array([shares[name] for name in names])
    family = names[rng.choice(len(names), p=chances / chances.sum())]
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    options = {
        "style": list(STYLES)[rng.integers(len(STYLES))],
        KEEP: KEEP,
        "recolour": f"recolour/{thing}/{colour}",
        "remove": f"remove/{thing}",
        "add": f"add/{CLASSES[rng.integers(len(CLASSES))]}/{colour}",
        "background": f"background/{PLACES[rng.integers(len(PLACES))]}",
    }
    return options[family]
