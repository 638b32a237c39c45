"""Stage 3: self-forcing. The model edits streams with its own caches and four steps, and learns from where it gets to."""

import torch
from sana_export.dit import DiT
from sana_export.text import TextEncoder
from sana_export.vae import VAE
from torch import Tensor

from train_tiny.dit_stage import EXCLUDED, Group, channel_weights, sample_times, weighted_error
from train_tiny.model import MODEL
from train_tiny.optim import Average, Clock, Optimizer
from train_tiny.rollout import STEPS, Editor, noised
from train_tiny.streams import PromptBook, World

BATCH = 96
LENGTHS = (4, 6, 10, 16, 44)
"""Chunks of a stream before it ends; the longest is past every length that the report asks about."""

EARLY_WEIGHT = 0.3
CYCLE_WEIGHT = 0.15


def rollout(editor: Editor, group: Group, book: PromptBook, weights: Tensor, cycle: bool, trained: bool) -> Tensor:
    """The loss of one more chunk, edited by the model itself; `trained` keeps the graph of what it writes."""
    chunk, world = group.stream.next(), group.stream.world
    prompt = editor.prompt(*book.draw(world.rng, chunk.keys))
    rope = editor.rope(group.starts(chunk), chunk.source.shape[2])
    past = group.memory.past()
    latent, early = torch.randn_like(chunk.target), int(world.rng.integers(len(STEPS) - 1))
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
    return loss + CYCLE_WEIGHT * cycle_reverse(editor, group, book, chunk, latent, weights) if cycle else loss


def cycle_reverse(editor, group, book, chunk, edited, weights):  # type: ignore[no-untyped-def]
    """Flow matching back to the source chunk, given the edited one and the reverse prompt; it has caches of its own."""
    prompt = editor.prompt(*book.draw(group.stream.world.rng, chunk.reversed_keys))
    rope = editor.rope(group.starts(chunk), chunk.source.shape[2])
    past = group.backward.past()
    time, noise = sample_times(len(edited), edited.device), torch.randn_like(edited)
    latent = noised(chunk.source, noise, time)
    velocity, _ = editor.evaluate(latent, edited, time, prompt, rope, past)
    with torch.no_grad():
        group.backward.append(editor.write(chunk.source, edited.detach(), prompt, rope, past))
    return weighted_error(velocity, noise - chunk.source, weights).mean()


def train_stream(
    world: World,
    vae: VAE,
    book: PromptBook,
    parts: tuple[DiT, TextEncoder],
    minutes: float,
    cycle: bool = True,
    batch: int = BATCH,
) -> tuple[DiT, TextEncoder, list[dict[str, float]]]:
    """The DiT and text encoder of stage 2, trained on their own rollouts, and the training curve."""
    editor = Editor(*parts, MODEL.geometry).to(world.device).train()
    weights = channel_weights(vae, world)
    optimizer = Optimizer([editor], muon=0.004, adam=8e-4, excluded=EXCLUDED)
    average, clock, curve = Average([editor], 0.998), Clock(minutes, flat=0.2), []
    groups = [Group(world, vae, batch, length) for length in LENGTHS]
    step = 0
    while clock.progress < 1:
        turn = step % len(groups)
        group = groups[turn]
        loss = sum(rollout(editor, group, book, weights, cycle, trained) for trained in (True, False)) / 2
        loss.backward()
        group.memory.cut()
        norm = optimizer.step(clock.rate)
        average.update()
        if group.finished:
            groups[turn] = Group(world, vae, batch, LENGTHS[turn])
        step += 1
        if step % 20 == 0:
            curve.append({"step": step, "progress": clock.progress, "loss": float(loss.detach()), "norm": float(norm)})
            print(curve[-1], flush=True)
    average.store()
    return editor.dit, editor.text, curve
