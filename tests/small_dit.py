"""A transformer with both kinds of block that runs in milliseconds, and inputs for it."""

import torch
from torch import Tensor

from sana_export.configs import DiTConfig
from sana_export.dit import DiT, Prompt
from sana_export.random_weights import fill_dit

# Tensors this small are finished before a pool of threads on busy cores has agreed on who works.
torch.set_num_threads(1)

CONFIG = DiTConfig(
    depth=4,
    hidden=48,
    heads=2,
    latent_channels=6,
    source_channels=4,
    caption_width=10,
    text_tokens=7,
    max_frames=64,
)
HEIGHT, WIDTH = 2, 3


def small_dit(seed: int = 0) -> DiT:
    dit = DiT(CONFIG).eval().requires_grad_(False)
    fill_dit(dit, seed)
    return dit


def latents(frames: int, seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """(noise, source) of a chunk or clip."""
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, HEIGHT, WIDTH)
    return tuple(
        torch.randn(batch, channels, *shape, generator=generator)
        for channels in (CONFIG.latent_channels, CONFIG.source_channels)
    )


def text_and_mask(seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Text whose last two tokens are padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, CONFIG.text_tokens)
    mask[:, -2:] = 0
    return torch.randn(batch, CONFIG.text_tokens, CONFIG.caption_width, generator=generator), mask


def make_prompt(dit: DiT, seed: int) -> Prompt:
    return dit.prompt(*text_and_mask(seed))


def assert_near(found: Tensor, wanted: Tensor, limit: float = 2e-5) -> None:
    """max|a-b| / max|b| below the limit of a golden forward."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= limit
