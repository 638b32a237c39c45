"""Stage 3: which object is meant. Stills alone, which cost a quarter of what streams do, until it is seen."""

from collections.abc import Callable

from torch import Tensor

from sana_export.dit import DiT
from sana_export.text import TextEncoder
from sana_export.vae import VAE
from train_tiny.dit_stage import (
    EXCLUDED,
    SIZES,
    STILL_BATCH,
    STILL_REFRESH,
    Lesson,
    channel_weights,
    still_lesson,
    still_matching,
)
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Optimizer, Points, Training
from train_tiny.phrasings import KEEP
from train_tiny.rollout import Editor
from train_tiny.speed import Captured, compile_each
from train_tiny.streams import PromptBook, StillPool, World

OBJECT_SHARES = {"recolour": 0.4, "remove": 0.26, "style": 0.12, KEEP: 0.04, "add": 0.1, "background": 0.08}
"""How often each family is drawn: mostly those that name an object, of the others enough to stay as they are."""


def object_step(editor: Editor, weights: Tensor) -> Callable[[Lesson], Tensor]:
    def step(stills: Lesson) -> Tensor:
        loss = still_matching(editor, stills, weights)
        loss.backward()
        return loss.detach()

    return step


def train_objects(
    world: World,
    vae: VAE,
    book: PromptBook,
    parts: tuple[DiT, TextEncoder],
    minutes: float,
    batch: int = SIZES.stills,
    size: int = SIZES.still_pool,
) -> tuple[DiT, TextEncoder, Points]:
    """The DiT and text encoder of stage 2, trained on single frames, and the training curve."""
    editor, clock = Editor(*parts, MODEL.geometry).to(world.device).train(), Clock(minutes, flat=0.2)
    pool = StillPool(world, vae, size, min(STILL_BATCH, batch), OBJECT_SHARES)
    compile_each([*editor.dit.blocks, *editor.text.model.layers], world.device)
    step = Captured(object_step(editor, channel_weights(vae, world)), editor.parameters())
    optimizer = Optimizer([editor], muon=0.01, adam=1.4e-3, excluded=EXCLUDED)
    training = Training([editor], optimizer, clock, 250)
    step.rehearse(still_lesson(pool, book, batch))
    for _ in training:
        training.apply(loss=step(still_lesson(pool, book, batch)))
        if training.step % STILL_REFRESH == 0:
            pool.refresh()
    return editor.dit, editor.text, training.finish()
