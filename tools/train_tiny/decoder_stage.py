"""Stage 5: the VAE's decoder learns to show what the editor leaves, without a jump where one latent ends."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sana_export.vae import VAE, VAEDecoder
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Optimizer, Points, Training
from train_tiny.rollout import Editor, empty_memory, sample
from train_tiny.scenes import hurried
from train_tiny.speed import Captured
from train_tiny.streams import PairStream, PromptBook, World
from train_tiny.vae_stage import CROP, FLOOR, PEAK, perturbed

CHUNKS = 3
BATCH = 8
POOL, RECORDED = 160, 16
"""Streams in the pool, and how many of them are renewed at once."""

REFRESH = 48
"""Training steps between two renewals."""

EDITED_SHARE = 0.6
"""Share of clips that are shown from the editor's latents; the others from those of the truth, as in stage 1."""

CHANGE_WEIGHT = 1.0
CHANGE_FLOOR = 1e-4
"""Added, inside the logarithm, to the square of how much a clip's error changes from frame to frame."""

BORDER_WEIGHT = 3.0
"""How much more a change counts where one latent's frames end and the next one's begin: there it is seen as a jump."""


class Recorded(NamedTuple):
    """Streams as the editor left them: latents (B, C, T, h, w), those of the truth, and the true frames, 8 bit."""

    edited: Tensor
    true: Tensor
    frames: Tensor


@torch.no_grad()
def record(world: World, vae: VAE, editor: Editor, book: PromptBook) -> Recorded:
    """The first chunks of new streams, edited with the sampler that is served."""
    streams = PairStream(world, vae, hurried(world.rng, world.scenes(RECORDED)))
    prompt, memory = editor.prompt(*book.draw(world.rng, streams.keys)), empty_memory()
    chunks = []
    for _ in range(CHUNKS):
        chunk, video = streams.next()
        edited, memory = sample(editor, chunk.source, prompt, memory, chunk.start)
        chunks.append((edited, chunk.target, (127.5 * (video + 1)).round().byte()))
    return Recorded(*(torch.cat(parts, 2) for parts in zip(*chunks, strict=True)))


class RecordedPool:
    """Recorded streams that are replaced a few at a time."""

    def __init__(self, world: World, source: Callable[[], Recorded], size: int) -> None:
        self.world, self.source, self.oldest = world, source, 0
        self.streams = Recorded(*map(torch.cat, zip(*(source() for _ in range(size // RECORDED)), strict=True)))

    def refresh(self) -> None:
        """Replace the oldest streams by new ones."""
        rows = slice(self.oldest, self.oldest + RECORDED)
        for place, new in zip(self.streams, self.source(), strict=True):
            place[rows] = new
        self.oldest = (self.oldest + RECORDED) % len(self.streams.frames)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Latents and the frames they should show, of random windows of random streams."""
        rng, drawn = self.world.rng, []
        unit = self.streams.frames.shape[-1] // self.streams.true.shape[-1]
        high, wide = (side // unit for side in CROP)
        spare = [have - want for have, want in zip(self.streams.true.shape[3:], (high, wide), strict=True)]
        for row in rng.integers(0, len(self.streams.frames), batch).tolist():
            y, x = (int(rng.integers(0, most + 1)) for most in spare)
            latents = self.streams.edited if rng.random() < EDITED_SHARE else self.streams.true
            frames = self.streams.frames[row, :, :, unit * y : unit * (y + high), unit * x : unit * (x + wide)]
            drawn.append((latents[row, :, :, y : y + high, x : x + wide], frames))
        latents, frames = (torch.stack(part) for part in zip(*drawn, strict=True))
        return latents, frames.float() / 127.5 - 1


def border_weights(video: Tensor) -> Tensor:
    """(F - 1, 1, 1) of mean 1 for the changes of a video (B, 3, F, H, W) from frame to frame."""
    border = torch.arange(video.shape[2] - 1, device=video.device) % MODEL.vae.temporal_ratio == 0
    weight = torch.where(border, BORDER_WEIGHT, 1.0)
    return (weight / weight.mean())[:, None, None]


def decoder_step(decoder: VAEDecoder) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function from latents and frames to the squares of the error and of its change, that leaves gradients."""

    def step(latents: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=frames.is_cuda, cache_enabled=False):
            shown, _ = decoder(perturbed(latents)[0])
        error = shown.float() - frames
        square = error.square().mean(dim=(1, 2, 3, 4))
        change = (border_weights(error) * (error[:, :, 1:] - error[:, :, :-1]).square()).mean(dim=(1, 2, 3, 4))
        loss = torch.log(square + FLOOR).mean() + CHANGE_WEIGHT * torch.log(change + CHANGE_FLOOR).mean()
        loss.backward()
        return square.detach().mean(), change.detach().mean()

    return step


def train_decoder(
    world: World,
    vae: VAE,
    editor: Editor,
    book: PromptBook,
    minutes: float,
    batch: int = BATCH,
    pool: int = POOL,
) -> tuple[VAE, Points]:
    """The VAE with its decoder trained on the editor's streams, and the training curve; the encoder stays."""
    clock, streams = Clock(minutes, flat=0.2), RecordedPool(world, lambda: record(world, vae, editor, book), pool)
    # The recordings keep their truth, so that the decoder which is trained takes no part in them.
    decoder = vae.decoder.train()
    optimizer = Optimizer([decoder], muon=0.006, adam=5e-4, excluded=("conv_out",))
    training = Training([decoder], optimizer, clock, 50, decay=0.995)
    step = Captured(decoder_step(decoder), decoder.parameters())
    step.rehearse(*streams.draw(batch))
    for _ in training:
        error, change = step(*streams.draw(batch))
        training.apply(psnr=10 * torch.log10(PEAK**2 / error), change=10 * torch.log10(PEAK**2 / change))
        if training.step % REFRESH == 0:
            streams.refresh()
    return vae.eval(), training.finish()
