"""Stage 3: self-forcing. The model edits streams with its own caches in four steps, and learns from the result."""

import torch
from torch import Tensor

from sana_export.caches import Prompt
from sana_export.dit import DiT
from sana_export.rope import Rope
from sana_export.text import TextEncoder
from sana_export.vae import VAE
from train_tiny.dit_stage import EXCLUDED, SWITCH, Group, channel_weights, sample_times, weighted_error
from train_tiny.model import MODEL
from train_tiny.optim import Average, Clock, Curve, Optimizer
from train_tiny.rollout import STEPS, Editor, Memory, noised
from train_tiny.streams import PairPool, PromptBook, World

BATCH = 64
POOLS = {6: 768, 14: 256, 44: 64}
"""Chunks of a stream and how many such streams are kept; the longest is past every length the report asks about."""

REFRESH = 12

EARLY_WEIGHT = 0.3
CYCLE_WEIGHT = 0.15


def rollout(editor: Editor, group: Group, book: PromptBook, weights: Tensor, cycle: bool, trained: bool) -> Tensor:
    """The loss of one more chunk, edited by the model itself; `trained` keeps the graph of what it writes."""
    chunk, starts = group.next()
    prompt = editor.prompt(*book.draw(group.world.rng, chunk.keys))
    rope, past = editor.rope(starts, chunk.source.shape[2]), group.memory.past()
    latent, early = torch.randn_like(chunk.target), int(group.world.rng.integers(len(STEPS) - 1))
    loss = latent.new_zeros(())
    for index, (time, sigma, following) in enumerate(STEPS):
        learns = index in (early, len(STEPS) - 1)
        with torch.set_grad_enabled(learns):
            times = latent.new_full((len(latent),), time)
            velocity, _ = editor.evaluate(latent, chunk.source, times, prompt, rope, past)
            if learns:
                weight = 1.0 if index == len(STEPS) - 1 else EARLY_WEIGHT
                error = weighted_error(latent - sigma * velocity, chunk.target, weights).mean()
                loss = loss + weight * error / sigma**2
            latent = latent.detach() + (following - sigma) * velocity
    with torch.set_grad_enabled(trained):
        group.memory.append(editor.write(latent.detach(), chunk.source, prompt, rope, past))
    if not cycle:
        return loss
    back = editor.prompt(*book.draw(group.world.rng, chunk.reversed_keys))
    return loss + CYCLE_WEIGHT * cycle_reverse(editor, group.backward, chunk.source, latent, back, rope, weights)


def cycle_reverse(
    editor: Editor, memory: Memory, source: Tensor, edited: Tensor, prompt: Prompt, rope: Rope, weights: Tensor
) -> Tensor:
    """Flow matching back to the source chunk, given the edited one and the reverse prompt; it has caches of its own."""
    past = memory.past()
    time, noise = sample_times(len(edited), edited.device), torch.randn_like(edited)
    latent = noised(source, noise, time)
    velocity, _ = editor.evaluate(latent, edited, time, prompt, rope, past)
    with torch.no_grad():
        memory.append(editor.write(source, edited.detach(), prompt, rope, past))
    return weighted_error(velocity, noise - source, weights).mean()


def train_stream(
    world: World,
    vae: VAE,
    book: PromptBook,
    parts: tuple[DiT, TextEncoder],
    minutes: float,
    cycle: bool = True,
    batch: int = BATCH,
    sizes: dict[int, int] | None = None,
) -> tuple[DiT, TextEncoder, list[dict[str, float]]]:
    """The DiT and text encoder of stage 2, trained on their own rollouts, and the training curve."""
    editor, clock = Editor(*parts, MODEL.geometry).to(world.device).train(), Clock(minutes, flat=0.2)
    weights = channel_weights(vae, world)
    pools = [PairPool(world, vae, size, length, min(batch, size), SWITCH) for length, size in (sizes or POOLS).items()]
    optimizer = Optimizer([editor], muon=0.005, adam=7e-4, excluded=EXCLUDED)
    average, curve = Average([editor], 0.998), Curve(clock, 25)
    groups = [Group(pool, batch) for pool in pools]
    while clock.progress < 1:
        turn = curve.step % len(groups)
        group = groups[turn]
        loss = sum(rollout(editor, group, book, weights, cycle, trained) for trained in (True, False)) / 2
        loss.backward()
        group.memory.cut()
        norm = optimizer.step(clock.rate)
        average.update()
        curve.add(loss=loss, norm=norm)
        if group.finished:
            groups[turn] = Group(pools[turn], batch)
        if curve.step % REFRESH == 0:
            pools[0].refresh()
    average.store()
    return editor.dit, editor.text, curve.points
