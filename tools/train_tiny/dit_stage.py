"""Stage 2: flow matching on pairs, already in the streaming layout, with the caches of clean edited chunks."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from sana_export.dit import DiT
from sana_export.text import TextEncoder, fill_gemma
from sana_export.vae import VAE
from train_tiny.model import MODEL
from train_tiny.optim import Average, Clock, Curve, Optimizer
from train_tiny.rollout import SCHEDULE, Editor, Memory, noised
from train_tiny.storage import new_text
from train_tiny.streams import Chunk, PairPool, PromptBook, World

BATCH = 64
POOL = 1536
REFRESH = 8
"""Streams in the pool, and training steps between two renewals of a batch of them: each is used about three times."""

GROUPS = 4
LENGTH = 4
SWITCH = 0.1
SAMPLER_SHARE = 0.7
"""Share of times that are the sampler's own; the others are uniform."""

JUMP_SHARE = 0.5
EXCLUDED = ("embed_tokens", "x_embedder", "final_layer", "t_embedder", "t_block", "depth_conv", "table")
CONSTANT = 10.0


def new_editor(seed: int) -> Editor:
    """An untrained editor that returns the source: the easiest edit, and the start of all others."""
    torch.manual_seed(seed)
    dit, text = DiT(MODEL.dit), new_text()
    fill_gemma(text.model, seed)
    for block in dit.blocks:
        nn.init.zeros_(block.cross_attn.proj.weight)
        nn.init.zeros_(block.cross_attn.proj.bias)
    nn.init.zeros_(dit.t_block[1].weight)
    nn.init.zeros_(dit.t_block[1].bias)
    pass_source_through(dit)
    return Editor(dit, text, MODEL.geometry)


@torch.no_grad()
def pass_source_through(dit: DiT) -> None:
    """Make the outer layers compute (noisy - source) / sigma, for an average sigma of the sampler.

    Two large constants in the residual stream keep its norm, by which the final layer divides, nearly the same for
    every token.
    """
    hidden, channels = MODEL.dit.hidden, MODEL.dit.latent_channels
    inward = torch.eye(hidden, 2 * channels)
    constant = torch.zeros(hidden)
    constant[0], constant[-1] = CONSTANT, -CONSTANT
    difference = torch.cat([torch.eye(channels), -torch.eye(channels)], dim=1)
    outward = difference @ inward.T / (sum(SCHEDULE.sigmas) / len(SCHEDULE.timesteps))
    dit.x_embedder.weight.copy_(inward)
    dit.x_embedder.bias.copy_(constant)
    dit.final_layer.linear.weight.copy_(outward * (1 + 2 * CONSTANT**2 / hidden) ** 0.5)
    dit.final_layer.linear.bias.copy_(-outward @ constant)


class Group:
    """Streams of the same age, with what they carry and how far their clocks jump after the first chunk."""

    def __init__(self, pool: PairPool, batch: int) -> None:
        self.world, self.chunks, self.index = pool.world, pool.draw(batch), 0
        self.memory, self.backward = Memory(), Memory()
        geometry = MODEL.geometry
        jumps = self.world.rng.integers(0, geometry.max_chunks - pool.length, batch)
        jumps = jumps * (self.world.rng.random(batch) < JUMP_SHARE)
        self.jumps = geometry.steady_latents * torch.tensor(jumps, device=self.world.device)

    @property
    def finished(self) -> bool:
        return self.index >= len(self.chunks)

    def next(self) -> tuple[Chunk, Tensor]:
        """The next chunk, and the position (B,) at which each stream believes it to start."""
        chunk = self.chunks[self.index]
        self.index += 1
        chunk = replace(chunk, source=chunk.source.float(), target=chunk.target.float())
        return chunk, chunk.start + (self.jumps if chunk.start else torch.zeros_like(self.jumps))


def sample_times(count: int, device: torch.device) -> Tensor:
    """Times (count,) to train at."""
    uniform = torch.randint(1, 1001, (count,), device=device).float()
    own = torch.tensor(SCHEDULE.timesteps, device=device)[
        torch.randint(len(SCHEDULE.timesteps), (count,), device=device)
    ]
    return torch.where(torch.rand(count, device=device) < SAMPLER_SHARE, own, uniform)


def channel_weights(vae: VAE, world: World) -> Tensor:
    """(C, 1, 1, 1) of mean 1: how much an error in a channel shows in the pixels, mixed with equal weights."""
    with torch.no_grad():
        latent, _ = vae.encoder(world.clips(4, 33))
        plain, _ = vae.decoder(latent)
        shown = []
        for channel in range(latent.shape[1]):
            moved = latent.clone()
            moved[:, channel] += 0.25 * torch.randn_like(moved[:, channel])
            shown.append((vae.decoder(moved)[0] - plain).square().mean())
    seen = torch.stack(shown)
    return (0.5 + 0.5 * seen / seen.mean())[:, None, None, None]


def weighted_error(guess: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error (B,) per stream."""
    return ((guess - truth).square() * weights).mean(dim=(1, 2, 3, 4))


def flow_matching(editor: Editor, group: Group, book: PromptBook, weights: Tensor) -> Tensor:
    """The loss of one more chunk of a group, whose clean target is appended to the group's memory."""
    chunk, starts = group.next()
    source, target = chunk.source, chunk.target
    prompt = editor.prompt(*book.draw(group.world.rng, chunk.keys))
    rope, past = editor.rope(starts, source.shape[2]), group.memory.past()
    time, noise = sample_times(len(target), target.device), torch.randn_like(target)
    velocity, _ = editor.evaluate(noised(target, noise, time), source, time, prompt, rope, past)
    group.memory.append(editor.write(target, source, prompt, rope, past))
    return weighted_error(velocity, noise - target, weights).mean()


def train_dit(
    world: World, vae: VAE, book: PromptBook, minutes: float, seed: int, batch: int = BATCH, size: int = POOL
) -> tuple[DiT, TextEncoder, list[dict[str, float]]]:
    """A DiT and a text encoder trained together, and the training curve."""
    editor, clock = new_editor(seed).to(world.device), Clock(minutes)
    weights, pool = channel_weights(vae, world), PairPool(world, vae, size, LENGTH, batch, SWITCH)
    optimizer = Optimizer([editor], muon=0.015, adam=2e-3, excluded=EXCLUDED)
    average, curve = Average([editor], 0.998), Curve(clock, 50)
    groups = [Group(pool, batch) for _ in range(GROUPS)]
    while clock.progress < 1:
        turn = curve.step % GROUPS
        group = groups[turn]
        # Two chunks at a time, so that what the first one writes is trained for the second one to read.
        loss = sum(flow_matching(editor, group, book, weights) for _ in range(2)) / 2
        loss.backward()
        group.memory.cut()
        norm = optimizer.step(clock.rate)
        average.update()
        curve.add(loss=loss, norm=norm)
        if group.finished:
            groups[turn] = Group(pool, batch)
        if curve.step % REFRESH == 0:
            pool.refresh()
    average.store()
    return editor.dit, editor.text, curve.points
