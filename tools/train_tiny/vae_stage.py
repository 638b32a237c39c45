"""Stage 1: the causal VAE, trained on whole clips, which equals chunk by chunk because every layer is causal."""

from collections.abc import Callable

import torch
from torch import Tensor

from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.vae import VAE, State
from sana_export.vae_keys import fill_vae
from sana_runtime.geometry import StreamGeometry
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Optimizer, Points, Training
from train_tiny.speed import Captured
from train_tiny.streams import ClipPool, World

SHORT, LONG = 33, 57
"""Pixel frames of a training clip: a first chunk, and with the chunk after it."""

BATCH = 10
PEAK = 2.0
CROP = (96, 128)
"""Windows of the frame: smaller steps, and many more of them."""

POOL = 384
REFRESH = 16
"""Clips in the pool, and training steps between two renewals of some of them."""

LATENT_NOISE = 0.06
FLOOR = 5e-4
"""Added to a clip's squared error inside the logarithm: clips at 39 dB and better stop to matter."""


def new_vae(seed: int, device: torch.device) -> VAE:
    vae = VAE(MODEL.vae)
    fill_vae(vae, seed)
    for part in (vae.encoder, vae.decoder):
        part.latents_mean.zero_()
        part.latents_std.fill_(1)
    return vae.to(device)


def train_vae(world: World, minutes: float, seed: int, batch: int = BATCH, pool: int = POOL) -> tuple[VAE, Points]:
    """A VAE with its latent statistics, and the training curve."""
    vae, clock = new_vae(seed, world.device), Clock(minutes)
    clips = ClipPool(world, pool, LONG)
    optimizer = Optimizer([vae], muon=0.025, adam=2e-3, excluded=("encoder.conv_in", "decoder.conv_out"))
    training = Training([vae], optimizer, clock, 250)
    shapes = [(batch, SHORT)] * 3 + [(batch // 2, LONG)]
    step = Captured(vae_step(vae), vae.parameters())
    for shape in dict.fromkeys(shapes):
        step.rehearse(clips.draw(*shape, CROP))
    for made in training:
        error = step(clips.draw(*shapes[made % len(shapes)], CROP))
        training.apply(psnr=10 * torch.log10(PEAK**2 / error))
        if training.step % REFRESH == 0:
            clips.refresh()
    points = training.finish()
    measure_statistics(vae, world)
    return vae.eval(), points


def vae_step(vae: VAE) -> Callable[[Tensor], Tensor]:
    """A function from clips to their mean squared error that leaves gradients behind."""

    def step(video: Tensor) -> Tensor:
        with torch.autocast(video.device.type, torch.bfloat16, enabled=video.is_cuda, cache_enabled=False):
            latent, _ = vae.encoder(video)
            noisy, spread = perturbed(latent.float())
            shown, _ = vae.decoder(noisy)
        error = (shown.float() - video).square().mean(dim=(1, 2, 3, 4))
        (torch.log(error + FLOOR).mean() + 0.01 * spread).backward()
        return error.detach().mean()

    return step


def perturbed(latent: Tensor) -> tuple[Tensor, Tensor]:
    """The latent with noise in proportion to every channel's spread, and how far the spread is from one.

    In proportion, so that larger latents do not help; that is what makes the decoder tolerate an edit's small errors.
    """
    spread = latent.std(dim=(0, 2, 3, 4), keepdim=True)
    share = LATENT_NOISE * torch.rand(len(latent), 1, 1, 1, 1, device=latent.device)
    return latent + share * spread * torch.randn_like(latent), spread.log().square().mean()


@torch.no_grad()
def measure_statistics(vae: VAE, world: World) -> None:
    """Set latents_mean and latents_std so that normalised latents have unit scale in every channel."""
    latents = torch.cat([vae.encoder(world.clips(8, SHORT))[0] for _ in range(16)])
    for part in (vae.encoder, vae.decoder):
        part.latents_mean.copy_(latents.mean(dim=(0, 2, 3, 4)))
        part.latents_std.copy_(latents.std(dim=(0, 2, 3, 4)))


@torch.no_grad()
def reconstruct(vae: VAE, frames: Tensor, geometry: StreamGeometry) -> Tensor:
    """uint8 (B, F, H, W, 3) through the VAE chunk by chunk, as served; frames past the last chunk are cut."""
    encoded: State | None = None
    decoded: State | None = None
    shown, start = [], 0
    while start + (count := geometry.chunk(len(shown)).frames) <= frames.shape[1]:
        latent, encoded = vae.encoder(uint8_to_pixels(frames[:, start : start + count]), encoded)
        video, decoded = vae.decoder(latent, decoded)
        shown.append(pixels_to_uint8(video))
        start += count
    return torch.cat(shown, dim=1)
