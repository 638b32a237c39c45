"""Stage 2: flow matching on pairs, already in the streaming layout, with the caches of clean edited chunks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sana_export.caches import Cache, Prompt
from sana_export.dit import DiT
from sana_export.rope import Rope
from sana_export.text import TextEncoder, fill_gemma
from sana_export.vae import VAE
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Optimizer, Points, Training
from train_tiny.prompts import INVERTIBLE
from train_tiny.rollout import SCHEDULE, Editor, Memory, empty_memory, leaf, noised, resident
from train_tiny.speed import Captured, compile_each
from train_tiny.storage import new_text
from train_tiny.streams import PairPool, PromptBook, StillPool, World


@dataclass(frozen=True)
class Sizes:
    """Streams of a step and of their pool, stills of a step and of theirs."""

    batch: int = 64
    pool: int = 1536
    stills: int = 256
    still_pool: int = 8192


SIZES = Sizes()
REFRESH = 24
"""Training steps between two renewals of a batch of streams: each is used about twelve times."""

STILL_BATCH, STILL_REFRESH = 128, 4
"""Stills that are renewed at once, and training steps between two renewals: each is used about eight times."""

STILL_WEIGHT = 0.5
"""Of the loss of stills beside that of streams."""

GROUPS = 4
LENGTH = 4
SWITCH = 0.1
SAMPLER_SHARE = 0.7
"""Share of times that are the sampler's own; the others are uniform."""

JUMP_SHARE = 0.5
EMPHASIS, MOST_EMPHASIS = 1.5, 12.0
"""How much more the places count that an edit changes, and the change, over its mean, from which they count no more."""

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


Tokens = tuple[Tensor, Tensor]
"""Ids and mask (B, N) of instructions."""


class Lesson(NamedTuple):
    """What is learned from one chunk of B streams: its latents (B, C, T, h, w), and where it starts (B,).

    `back` are the instructions that undo `prompt`, where they are asked for, and `whole` (B,) says which edits hide
    nothing.
    """

    source: Tensor
    target: Tensor
    start: Tensor
    prompt: Tokens
    back: Tokens | None = None
    whole: Tensor | None = None


class Group:
    """Streams of the same age, with what they carry and how far their clocks jump after the first chunk."""

    def __init__(self, pool: PairPool, batch: int) -> None:
        self.world, self.chunks, self.index = pool.world, pool.draw(batch), 0
        self.memory, self.backward = empty_memory(), empty_memory()
        geometry = MODEL.geometry
        jumps = self.world.rng.integers(0, geometry.max_chunks - pool.length, batch)
        jumps = jumps * (self.world.rng.random(batch) < JUMP_SHARE)
        self.jumps = geometry.steady_latents * torch.from_numpy(jumps).to(self.world.device, non_blocking=True)

    @property
    def finished(self) -> bool:
        return self.index >= len(self.chunks)

    def next(self, book: PromptBook, back: bool = False) -> Lesson:
        """The next chunk, with instructions."""
        chunk = self.chunks[self.index]
        self.index += 1
        start = chunk.start + (self.jumps if chunk.start else torch.zeros_like(self.jumps))
        rng = self.world.rng
        lesson = Lesson(chunk.source, chunk.target, start, book.draw(rng, chunk.keys))
        if not back:
            return lesson
        whole = torch.tensor([key in INVERTIBLE for key in chunk.keys])
        return lesson._replace(
            back=book.draw(rng, chunk.reversed_keys), whole=whole.to(start.device, non_blocking=True)
        )


def sample_times(count: int, device: torch.device) -> Tensor:
    """Times (count,) to train at."""
    uniform = torch.randint(1, 1001, (count,), device=device).float()
    own = resident(SCHEDULE.timesteps, device)[torch.randint(len(SCHEDULE.timesteps), (count,), device=device)]
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


def emphasis(source: Tensor, target: Tensor) -> Tensor:
    """(B, 1, T, h, w) of mean 1 per stream: more where the edit changes more, or a small object would hardly count."""
    change = (target - source).square().mean(1, keepdim=True)
    share = change / (change.mean(dim=(2, 3, 4), keepdim=True) + 1e-3)
    weight = 1 + EMPHASIS * share.clamp_max(MOST_EMPHASIS)
    return weight / weight.mean(dim=(2, 3, 4), keepdim=True)


def matched(
    editor: Editor, lesson: Lesson, prompt: Prompt, rope: Rope, past: list[Cache] | None, weights: Tensor
) -> Tensor:
    """The loss of flow matching on one chunk."""
    target = lesson.target
    time, noise = sample_times(len(target), target.device), torch.randn_like(target)
    velocity, _ = editor.evaluate(noised(target, noise, time), lesson.source, time, prompt, rope, past)
    error = (velocity - (noise - target)).square() * weights * emphasis(lesson.source, target)
    return error.mean()


def flow_matching(editor: Editor, lesson: Lesson, memory: Memory, weights: Tensor) -> tuple[Tensor, Memory]:
    """The loss of one more chunk, and the memory with its clean target."""
    target, start = lesson.target, lesson.start
    prompt, rope, past = editor.prompt(*lesson.prompt), editor.rope(start, target.shape[2]), memory.past()
    loss = matched(editor, lesson, prompt, rope, past, weights)
    return loss, memory.after(editor.write(target, lesson.source, prompt, rope, past))


def still_matching(editor: Editor, lesson: Lesson, weights: Tensor) -> Tensor:
    """The loss of single frames, which leave nothing behind."""
    prompt, rope = editor.prompt(*lesson.prompt), editor.rope(lesson.start, 1)
    return matched(editor, lesson, prompt, rope, None, weights)


def still_lesson(pool: StillPool, book: PromptBook, batch: int) -> Lesson:
    """Stills with instructions."""
    (stills,) = pool.draw(batch)
    start = torch.zeros(batch, dtype=torch.long, device=stills.source.device)
    return Lesson(stills.source, stills.target, start, book.draw(pool.world.rng, stills.keys))


def dit_step(editor: Editor, weights: Tensor) -> Callable[[Lesson, Lesson, Memory, Lesson], tuple[Tensor, Memory]]:
    """A step over stills and two chunks, so that what the first one writes is trained for the second one to read."""

    def step(first: Lesson, second: Lesson, memory: Memory, stills: Lesson) -> tuple[Tensor, Memory]:
        early, memory = flow_matching(editor, first, memory.map(leaf), weights)
        late, memory = flow_matching(editor, second, memory, weights)
        loss = (early + late) / 2 + STILL_WEIGHT * still_matching(editor, stills, weights)
        loss.backward()
        return loss.detach(), memory.map(Tensor.detach)

    return step


def rehearse(step: Captured, pool: PairPool, book: PromptBook, batch: int, stills: Lesson) -> None:
    """Make the step at every age of a stream, learning nothing, so that everything is compiled and captured."""
    group = Group(pool, batch)
    while not group.finished:
        _, group.memory = step.rehearse(group.next(book), group.next(book), group.memory, stills)


def train_dit(
    world: World,
    vae: VAE,
    book: PromptBook,
    minutes: float,
    seed: int,
    sizes: Sizes = SIZES,
) -> tuple[DiT, TextEncoder, Points]:
    """A DiT and a text encoder trained together, and the training curve."""
    editor, clock = new_editor(seed).to(world.device), Clock(minutes)
    weights, pool = channel_weights(vae, world), PairPool(world, vae, sizes.pool, LENGTH, sizes.batch, SWITCH)
    still_pool = StillPool(world, vae, sizes.still_pool, min(STILL_BATCH, sizes.stills))
    compile_each([*editor.dit.blocks, *editor.text.model.layers], world.device)
    step = Captured(dit_step(editor, weights), editor.parameters())
    optimizer = Optimizer([editor], muon=0.015, adam=2e-3, excluded=EXCLUDED)
    training = Training([editor], optimizer, clock, 100)
    rehearse(step, pool, book, sizes.batch, still_lesson(still_pool, book, sizes.stills))
    groups = [Group(pool, sizes.batch) for _ in range(GROUPS)]
    for made in training:
        turn = made % GROUPS
        group, stills = groups[turn], still_lesson(still_pool, book, sizes.stills)
        loss, group.memory = step(group.next(book), group.next(book), group.memory, stills)
        training.apply(loss=loss)
        if group.finished:
            groups[turn] = Group(pool, sizes.batch)
        if training.step % REFRESH == 0:
            pool.refresh()
        if training.step % STILL_REFRESH == 0:
            still_pool.refresh()
    return editor.dit, editor.text, training.finish()
