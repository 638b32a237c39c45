"""Stage 1: the causal VAE, trained on whole clips, which equals chunk by chunk because every layer is causal."""

import torch
from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.vae import VAE, State
from sana_export.vae_keys import fill_vae
from sana_runtime.geometry import StreamGeometry
from torch import Tensor

from train_tiny.model import MODEL, mixed_precision
from train_tiny.optim import Average, Clock, Optimizer
from train_tiny.streams import ClipPool, World

SHORT, LONG = 33, 57
"""Pixel frames of a training clip: a first chunk, and with the chunk after it."""

BATCH = 16
CROP = (96, 128)
"""Windows of the frame: smaller steps, and many more of them."""

POOL = 384
REFRESH = 6
"""Clips in the pool, and training steps between two renewals of some of them."""

LATENT_NOISE = 0.08
FLOOR = 5e-4
"""Added to a clip's squared error inside the logarithm: clips at 39 dB and better stop to matter."""


def new_vae(seed: int, device: torch.device) -> VAE:
    vae = VAE(MODEL.vae)
    fill_vae(vae, seed)
    for part in (vae.encoder, vae.decoder):
        part.latents_mean.zero_()
        part.latents_std.fill_(1)
    return vae.to(device)


def train_vae(
    world: World, minutes: float, seed: int, batch: int = BATCH, pool: int = POOL
) -> tuple[VAE, list[dict[str, float]]]:
    """A VAE with its latent statistics, and the training curve."""
    vae, clips = new_vae(seed, world.device), ClipPool(world, pool, LONG)
    optimizer = Optimizer([vae], muon=0.01, adam=2e-3, excluded=("encoder.conv_in", "decoder.conv_out"))
    average, clock, curve = Average([vae], 0.998), Clock(minutes), []
    step = 0
    while clock.progress < 1:
        if step % REFRESH == 0:
            clips.refresh()
        video = clips.draw(batch, SHORT, CROP) if step % 4 else clips.draw(batch // 2, LONG, CROP)
        with mixed_precision(world.device):
            latent, _ = vae.encoder(video)
            noisy, spread = perturbed(latent.float())
            shown, _ = vae.decoder(noisy)
        error = (shown.float() - video).square().mean(dim=(1, 2, 3, 4))
        loss = torch.log(error + FLOOR).mean() + 0.01 * spread
        loss.backward()
        norm = optimizer.step(clock.rate)
        average.update()
        step += 1
        if step % 100 == 0:
            curve.append({"step": step, "progress": clock.progress, "psnr": decibels(error.detach().mean()), "norm": float(norm)})
            print(curve[-1], flush=True)
    average.store()
    measure_statistics(vae, world)
    return vae.eval(), curve


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


def decibels(squared_error: Tensor | float, peak: float = 2.0) -> float:
    """PSNR of a mean squared error; pixels from -1 to 1 have a peak of 2."""
    return float(10 * torch.log10(peak**2 / torch.as_tensor(squared_error)))


@torch.no_grad()
def reconstruct(vae: VAE, frames: Tensor, geometry: StreamGeometry) -> Tensor:
    """uint8 (B, F, H, W, 3) through encoder and decoder chunk by chunk, as served; frames past the last chunk are cut."""
    encoded: State | None = None
    decoded: State | None = None
    shown, start = [], 0
    while start + (count := geometry.chunk(len(shown)).frames) <= frames.shape[1]:
        latent, encoded = vae.encoder(uint8_to_pixels(frames[:, start : start + count]), encoded)
        video, decoded = vae.decoder(latent, decoded)
        shown.append(pixels_to_uint8(video))
        start += count
    return torch.cat(shown, dim=1)
