"""Stage 4: other ways to say the same. The text encoder learns from what the blocks read out of known phrasings."""

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sana_export.dit import DiT
from sana_export.text import TextEncoder
from train_tiny.model import MODEL
from train_tiny.optim import Clock, Curve
from train_tiny.prompts import KEEP, STYLES, keys
from train_tiny.rollout import SCHEDULE, Editor
from train_tiny.streams import PromptBook

BATCH = 16
QUERIES = 48
RATE = 6e-4
LOOKS = 0.5
"""Share of looks and `keep` among the edits drawn; they are few beside the objects in all colours."""


def train_words(
    parts: tuple[DiT, TextEncoder], book: PromptBook, minutes: float, seed: int
) -> tuple[DiT, TextEncoder, list[dict[str, float]]]:
    """The text encoder made to say the same for every phrasing of an edit, and the training curve."""
    editor = Editor(*parts, MODEL.geometry).to(book.ids.device).requires_grad_(False)
    teacher = deepcopy(editor.text)
    editor.text.requires_grad_(True)
    torch.manual_seed(seed)
    rng, seen = np.random.default_rng(seed), record_queries(editor, book)
    optimizer = torch.optim.AdamW(editor.text.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    clock = Clock(minutes, flat=0.3)
    curve = Curve(clock, 50)
    while clock.progress < 1:
        wanted = draw_keys(rng)
        known = torch.tensor([int(book.rows[False][key][0]) for key in wanted], device=book.ids.device)
        tokens = torch.randint(seen.shape[3], (QUERIES,), device=seen.device)
        queries = seen[:, :, :, tokens]
        with torch.no_grad():
            truth = readings(editor.dit, *teacher(book.ids[known], book.mask[known]), queries)
        shown = readings(editor.dit, *editor.text(*book.draw(rng, wanted)), queries)
        loss = (shown - truth).square().mean() / truth.var()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * clock.rate
        optimizer.step()
        optimizer.zero_grad()
        curve.add(loss=loss)
    return editor.dit, editor.text, curve.points


def draw_keys(rng: np.random.Generator) -> list[str]:
    looks, others = [*STYLES, KEEP], [key for key in keys() if key not in STYLES and key != KEEP]
    return [str(rng.choice(looks if rng.random() < LOOKS else others)) for _ in range(BATCH)]


def readings(dit: DiT, text: Tensor, mask: Tensor, queries: Tensor) -> Tensor:
    """What every block's cross-attention answers: queries (blocks, 1, heads, N, d) to (blocks, B, heads, N, d)."""
    prompt = dit.prompt(text, mask)
    bias = prompt.bias.expand(-1, -1, queries.shape[3], -1)
    per_block = zip(queries.expand(-1, len(text), -1, -1, -1), prompt.k, prompt.v, strict=True)
    return torch.stack([F.scaled_dot_product_attention(q, k, v, bias) for q, k, v in per_block])


@torch.no_grad()
def record_queries(editor: Editor, book: PromptBook) -> Tensor:
    """Queries that the blocks ask for latents of unit scale: (blocks, 1, heads, tokens, d)."""
    asked: list[list[Tensor]] = [[] for _ in editor.dit.blocks]
    hooks = [
        block.cross_attn.q_norm.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output))
        for block, kept in zip(editor.dit.blocks, asked, strict=True)
    ]
    geometry, device = MODEL.geometry, book.ids.device
    shape = geometry.latent_shape(geometry.chunk(0))
    rope = editor.rope(torch.zeros(1, dtype=torch.long, device=device), shape[2])
    rng = np.random.default_rng(0)
    for time in SCHEDULE.timesteps:
        for key in rng.choice(keys(), 4):
            latent, source = torch.randn(2, *shape, device=device)
            prompt = editor.prompt(*book.draw(rng, [str(key)]))
            editor.evaluate(latent, source, latent.new_full((1,), time), prompt, rope, None)
    for hook in hooks:
        hook.remove()
    heads = MODEL.dit.heads
    return torch.stack([torch.cat(kept, 1).unflatten(-1, (heads, -1)).transpose(1, 2) for kept in asked]).float()
