"""Stage 4: self-forcing. The model edits streams with its own caches in four steps, and learns from the result."""

import torch
from torch import Tensor

from sana_export.dit import DiT
from sana_export.text import TextEncoder
from sana_export.vae import VAE
from train_tiny.dit_stage import EXCLUDED, SWITCH, Group, Lesson, channel_weights, sample_times
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Optimizer, Points, Training
from train_tiny.rollout import STEPS, Editor, Memory, leaf, noised
from train_tiny.speed import Captured, compile_each
from train_tiny.streams import PairPool, PromptBook, World

BATCH = 64
SHORTEST = 6
POOLS = {SHORTEST: 512, 14: 192, 44: 64}
"""Chunks of a stream and how many such streams are kept; the longest is past every length the report asks about."""

REFRESH = 36
"""Training steps between two renewals of a part of one pool; the pools take turns."""

EARLY_WEIGHT = 0.3
CYCLE_WEIGHT = 0.15
JUMP_WEIGHT, BORDER_WEIGHT = 0.35, 4.0
"""Of the change of the error from latent to latent, and how much more it counts from chunk to chunk, where the noise is
another: what the source does not show, an object's background, is imagined anew there."""

BALANCE = 0.75
"""From 0, where every place counts alike, to 1, where all that an edit changes counts as much as all that it leaves."""

CHANGED = 0.1
"""Squared change of a latent at which a place counts half as changed: an object's is about one."""

LEAST = 0.04
"""Share of the frame below which either side gains no more weight."""


class Teacher:
    """How the model is taught from its own rollouts; `cycle` adds the way back."""

    def __init__(self, editor: Editor, weights: Tensor, cycle: bool) -> None:
        self.editor, self.weights, self.cycle = editor, weights, cycle

    def step(
        self, early: int, first: Lesson, second: Lesson, memory: Memory, backward: Memory
    ) -> tuple[Tensor, Memory, Memory]:
        """Losses of two chunks, the first of which is trained to be read, and the memories of both directions."""
        losses, errors = [], []
        memory, backward = memory.map(leaf), backward.map(leaf)
        for lesson in (first, second):
            latent, loss, error, memory = self.rollout(lesson, memory, early)
            if self.cycle:
                back, backward = self.cycle_reverse(lesson, latent, backward)
                loss = loss + CYCLE_WEIGHT * back
            losses.append(loss)
            errors.append(error)
        loss = (sum(losses) + JUMP_WEIGHT * self.jumps(errors)) / 2
        loss.backward()
        return loss.detach(), memory.map(Tensor.detach), backward.map(Tensor.detach)

    def rollout(self, lesson: Lesson, memory: Memory, early: int) -> tuple[Tensor, Tensor, Tensor, Memory]:
        """A chunk edited in four steps, of which `early` and the last one learn: latent, loss, its error, memory."""
        source, target = lesson.source, lesson.target
        prompt, rope = self.editor.prompt(*lesson.prompt), self.editor.rope(lesson.start, source.shape[2])
        past = memory.past()
        latent, loss = torch.randn_like(target), target.new_zeros(())
        weight = self.weights * balance(source, target)
        for index, (time, sigma, following) in enumerate(STEPS):
            last, latent = index == len(STEPS) - 1, latent.detach()
            # Under no_grad every block would be compiled once more: what nothing learns from is dropped instead.
            times = latent.new_full((len(latent),), time)
            velocity, _ = self.editor.evaluate(latent, source, times, prompt, rope, past)
            error = (latent - sigma * velocity - target) / sigma
            if last or index == early:
                loss = loss + (1.0 if last else EARLY_WEIGHT) * (error.square() * weight).mean()
            latent = latent + (following - sigma) * velocity
        memory = memory.after(self.editor.write(latent.detach(), source, prompt, rope, past))
        return latent, loss, error, memory

    def jumps(self, errors: list[Tensor]) -> Tensor:
        """How much the errors (B, C, T, h, w) of two chunks change from latent to latent."""
        error = torch.cat(errors, 2)
        border = torch.arange(1, error.shape[2], device=error.device) == errors[0].shape[2]
        weight = 1 + (BORDER_WEIGHT - 1) * border
        change = (error[:, :, 1:] - error[:, :, :-1]).square() * self.weights
        return (change * (weight / weight.mean())[:, None, None]).mean()

    def cycle_reverse(self, lesson: Lesson, edited: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Flow matching back to the source, given the edited chunk and the reverse prompt; the memory is its own.

        An edit that hides something is not taught to bring it back: it would learn to leave traces of it.
        """
        source = lesson.source
        edited = torch.where(lesson.whole[:, None, None, None, None], edited, edited.detach())
        prompt, rope = self.editor.prompt(*lesson.back), self.editor.rope(lesson.start, source.shape[2])
        past, time, noise = memory.past(), sample_times(len(source), source.device), torch.randn_like(source)
        velocity, _ = self.editor.evaluate(noised(source, noise, time), edited, time, prompt, rope, past)
        memory = memory.after(self.editor.write(source, edited.detach(), prompt, rope, past)).map(leaf)
        return ((velocity - (noise - source)).square() * self.weights).mean(), memory


def balance(source: Tensor, target: Tensor) -> Tensor:
    """(B, 1, T, h, w) of mean 1 per stream: a small object counts where it is edited, and where all else is."""
    change = (target - source).square().mean(1, keepdim=True)
    changed = change / (change + CHANGED)
    share = changed.mean(dim=(2, 3, 4), keepdim=True).clamp(LEAST, 1 - LEAST)
    weight = 1 - BALANCE + BALANCE * (changed / share + (1 - changed) / (1 - share)) / 2
    return weight / weight.mean(dim=(2, 3, 4), keepdim=True)


def rehearse(step: Captured, pool: PairPool, book: PromptBook, batch: int, cycle: bool) -> None:
    """Make every kind of step at every age of a stream, learning nothing, so that all is compiled and captured."""
    for early in range(len(STEPS) - 1):
        group = Group(pool, batch)
        while not group.finished:
            lessons = [group.next(book, cycle) for _ in range(2)]
            _, group.memory, group.backward = step.rehearse(early, *lessons, group.memory, group.backward)


def train_stream(
    world: World,
    vae: VAE,
    book: PromptBook,
    parts: tuple[DiT, TextEncoder],
    minutes: float,
    cycle: bool = True,
    batch: int = BATCH,
    sizes: dict[int, int] | None = None,
) -> tuple[DiT, TextEncoder, Points]:
    """The DiT and text encoder of stage 3, trained on their own rollouts, and the training curve."""
    editor, clock = Editor(*parts, MODEL.geometry).to(world.device).train(), Clock(minutes, flat=0.2)
    weights = channel_weights(vae, world)
    pools = [
        PairPool(world, vae, size, length, min(batch, size // 4), SWITCH) for length, size in (sizes or POOLS).items()
    ]
    compile_each([*editor.dit.blocks, *editor.text.model.layers], world.device)
    step = Captured(Teacher(editor, weights, cycle).step, editor.parameters())
    optimizer = Optimizer([editor], muon=0.005, adam=7e-4, excluded=EXCLUDED)
    training = Training([editor], optimizer, clock, 50)
    rehearse(step, pools[0], book, batch, cycle)
    groups = [Group(pool, batch) for pool in pools]
    for made in training:
        turn = made % len(groups)
        group, early = groups[turn], int(world.rng.integers(len(STEPS) - 1))
        lessons = [group.next(book, cycle) for _ in range(2)]
        loss, group.memory, group.backward = step(early, *lessons, group.memory, group.backward)
        training.apply(loss=loss)
        if group.finished:
            groups[turn] = Group(pools[turn], batch)
        if training.step % REFRESH == 0:
            pools[training.step // REFRESH % len(pools)].refresh()
    return editor.dit, editor.text, training.finish()
