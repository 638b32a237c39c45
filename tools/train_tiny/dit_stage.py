"""Stage 2: flow matching on pairs, already in the streaming layout, with the caches of clean edited chunks."""

import torch
from sana_export.dit import DiT
from sana_export.text import TextEncoder, fill_gemma
from sana_export.vae import VAE
from torch import Tensor, nn

from train_tiny.model import MODEL
from train_tiny.optim import Average, Clock, Optimizer
from train_tiny.rollout import SCHEDULE, Editor, Memory, noised, repeated, repeated_prompt
from train_tiny.storage import new_text
from train_tiny.streams import Chunk, PairStream, PromptBook, World

BATCH = 64
COPIES = 3
"""Draws of noise and time for every rendered chunk."""

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

    def __init__(self, world: World, vae: VAE, batch: int, length: int, switch: float = SWITCH) -> None:
        self.stream = PairStream(world, vae, batch, switch)
        self.length = length
        self.memory, self.backward = Memory(), Memory()
        spare = (MODEL.dit.max_frames - MODEL.geometry.first_latents) // MODEL.geometry.steady_latents - length
        jumps = world.rng.integers(0, spare, batch) * (world.rng.random(batch) < JUMP_SHARE)
        self.jumps = MODEL.geometry.steady_latents * torch.tensor(jumps, device=world.device)

    @property
    def finished(self) -> bool:
        return self.stream.index >= self.length

    def starts(self, chunk: Chunk) -> Tensor:
        """The position (B,) at which each stream believes the chunk to start."""
        return chunk.start + (self.jumps if chunk.start else torch.zeros_like(self.jumps))


def sample_times(count: int, device: torch.device) -> Tensor:
    """Times (count,) to train at."""
    uniform = torch.randint(1, 1001, (count,), device=device).float()
    own = torch.tensor(SCHEDULE.timesteps, device=device)[torch.randint(len(SCHEDULE.timesteps), (count,), device=device)]
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


def flow_matching(editor: Editor, group: Group, book: PromptBook, weights: Tensor, copies: int) -> Tensor:
    """The loss of one more chunk of a group, whose clean target is appended to the group's memory."""
    chunk, world = group.stream.next(), group.stream.world
    prompt = editor.prompt(*book.draw(world.rng, chunk.keys))
    rope = editor.rope(group.starts(chunk), chunk.source.shape[2])
    past = group.memory.past()
    target, source = (x.repeat(copies, 1, 1, 1, 1) for x in (chunk.target, chunk.source))
    many = tuple(rows.repeat(copies, 1, 1, 1) for rows in rope)
    time, noise = sample_times(len(target), world.device), torch.randn_like(target)
    latent = noised(target, noise, time)
    velocity, _ = editor.evaluate(latent, source, time, repeated_prompt(prompt, copies), many, repeated(past, copies))
    group.memory.append(editor.write(chunk.target, chunk.source, prompt, rope, past))
    return weighted_error(velocity, noise - target, weights).mean()


def train_dit(
    world: World, vae: VAE, book: PromptBook, minutes: float, seed: int, batch: int = BATCH, copies: int = COPIES
) -> tuple[DiT, TextEncoder, list[dict[str, float]]]:
    """A DiT and a text encoder trained together, and the training curve."""
    editor = new_editor(seed).to(world.device)
    weights = channel_weights(vae, world)
    optimizer = Optimizer([editor], muon=0.01, adam=2e-3, excluded=EXCLUDED)
    average, clock, curve = Average([editor], 0.998), Clock(minutes), []
    groups = [Group(world, vae, batch, LENGTH) for _ in range(GROUPS)]
    step = 0
    while clock.progress < 1:
        turn = step % GROUPS
        group = groups[turn]
        # Two chunks at a time, so that what the first one writes is trained for the second one to read.
        loss = sum(flow_matching(editor, group, book, weights, copies) for _ in range(2)) / 2
        loss.backward()
        group.memory.cut()
        norm = optimizer.step(clock.rate)
        average.update()
        if group.finished:
            groups[turn] = Group(world, vae, batch, LENGTH)
        step += 1
        if step % 20 == 0:
            curve.append({"step": step, "progress": clock.progress, "loss": float(loss.detach()), "norm": float(norm)})
            print(curve[-1], flush=True)
    average.store()
    return editor.dit, editor.text, curve
