"""A bank of backgrounds on the GPU: crops of real pictures, dead leaves, coloured noise and gradients."""

import io
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

HEIGHT, WIDTH = 288, 512
LEAVES = 220
REAL, LEAF, NOISE, GRADIENT = 1024, 384, 256, 128
"""How many of each kind, in the order of the bank from LEAF_START on."""

BANK = LEAF + REAL + NOISE + GRADIENT


def build_bank(data: Mapping[str, np.ndarray], device: torch.device, scale: float = 1.0) -> Tensor:
    """Pictures (N, 3, HEIGHT, WIDTH) in [0, 1], half precision: dead leaves first, so that others are a range too.

    `scale` shrinks the bank, for a run on a CPU.
    """
    leaf, real, noise, gradient = (max(2, int(count * scale)) for count in (LEAF, REAL, NOISE, GRADIENT))
    crops = real_crops([decode(data[name]) for name in sorted(data) if name.startswith("picture")], real, device)
    parts = [dead_leaves(leaf, crops), crops, coloured_noise(noise, device), gradients(gradient, device)]
    return torch.cat([part.clamp(0, 1).half() for part in parts])


def leaf_count(bank: Tensor) -> int:
    """Where the pictures without dead leaves start, in a bank of any scale."""
    return max(2, round(len(bank) * LEAF / BANK))


def decode(content: np.ndarray) -> Tensor:
    picture = np.asarray(Image.open(io.BytesIO(content.tobytes())).convert("RGB"))
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255


def real_crops(pictures: list[Tensor], count: int, device: torch.device) -> Tensor:
    """Random crops, mirrored and slightly recoloured, every picture equally often."""
    crops = [random_crop(pictures[i % len(pictures)].to(device)) for i in range(count)]
    return torch.stack([recoloured(crop) for crop in crops])


def random_crop(picture: Tensor) -> Tensor:
    """A crop of 45 to 100 percent of what fits the bank's shape, resized to it."""
    height, width = picture.shape[1:]
    limit = min(height / HEIGHT, width / WIDTH)
    share = limit * float(torch.empty(1).uniform_(0.45, 1.0))
    tall, wide = int(HEIGHT * share), int(WIDTH * share)
    top, left = (int(torch.randint(0, extra + 1, (1,))) for extra in (height - tall, width - wide))
    crop = picture[None, :, top : top + tall, left : left + wide]
    crop = F.interpolate(crop, (HEIGHT, WIDTH), mode="bicubic", antialias=True, align_corners=False)[0]
    return crop.flip(-1) if torch.rand(1) < 0.5 else crop


def recoloured(picture: Tensor) -> Tensor:
    """Another exposure and white balance; sometimes with swapped colour channels."""
    gain = torch.empty(3, 1, 1).uniform_(0.8, 1.2).to(picture.device)
    gamma = float(torch.empty(1).uniform_(0.7, 1.4))
    if torch.rand(1) < 0.3:
        picture = picture[torch.randperm(3)]
    return (picture.clamp(0, 1) ** gamma * gain).clamp(0, 1)


def dead_leaves(count: int, textures: Tensor) -> Tensor:
    """Overlapping discs and boxes of power-law size: the edge statistics of natural pictures without their content."""
    device = textures.device
    canvas = textures[torch.randint(len(textures), (count,), device=device)].float()
    rows = torch.arange(HEIGHT, device=device)[None, :, None]
    columns = torch.arange(WIDTH, device=device)[None, None, :]
    for index in range(LEAVES):
        size = 140 * (1 - index / LEAVES) ** 2 * torch.rand(count, device=device).clamp_min(0.1) + 4
        y, x = torch.rand(count, device=device) * HEIGHT, torch.rand(count, device=device) * WIDTH
        dy, dx = rows - y[:, None, None], columns - x[:, None, None]
        angle = torch.rand(count, device=device)[:, None, None] * 3.14
        u, v = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        box = (torch.rand(count, device=device) < 0.4)[:, None, None]
        distance = torch.where(box, torch.maximum(u.abs(), 1.6 * v.abs()), (u.square() + v.square()).sqrt())
        mask = (size[:, None, None] - distance + 0.5).clamp(0, 1)[:, None]
        tone = torch.rand(count, 1, 1, 1, device=device) + 0.35 * (torch.rand(count, 3, 1, 1, device=device) - 0.5)
        shade = 1 + 0.3 * (torch.rand(count, 1, 1, device=device) - 0.5) * (u / size[:, None, None])
        texture = 0.35 * (canvas.roll(index + 1, 0) - 0.5) * torch.rand(count, 1, 1, 1, device=device)
        canvas = torch.lerp(canvas, tone * shade[:, None] + texture, mask)
    return canvas


def coloured_noise(count: int, device: torch.device) -> Tensor:
    """Noise with a power-law spectrum, smooth to rough, in a random pair of colours."""
    frequency = (
        torch.fft.fftfreq(HEIGHT, device=device)[:, None].square() + torch.fft.rfftfreq(WIDTH, device=device).square()
    )
    exponent = torch.empty(count, 1, 1, 1, device=device).uniform_(1.0, 2.2)
    spectrum = torch.fft.rfft2(torch.randn(count, 3, HEIGHT, WIDTH, device=device))
    field = torch.fft.irfft2(spectrum * frequency.clamp_min(1e-5) ** (-exponent / 2), s=(HEIGHT, WIDTH))
    field = field / field.std(dim=(2, 3), keepdim=True)
    mean, spread = torch.rand(count, 3, 1, 1, device=device), torch.rand(count, 3, 1, 1, device=device)
    mixed = 0.7 * field[:, :1] + 0.3 * field
    return 0.2 + 0.6 * mean + 0.2 * spread * mixed


def gradients(count: int, device: torch.device) -> Tensor:
    """Smooth blends between a few random colours."""
    corners = torch.rand(count, 3, 3, 4, device=device)
    return F.interpolate(corners, (HEIGHT, WIDTH), mode="bicubic", align_corners=True)
