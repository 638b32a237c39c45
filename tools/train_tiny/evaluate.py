"""What a checkpoint is worth on held-out video: every edit against its truth, offline, many streams at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sana_export.caches import Prompt
from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.vae import VAE
from train_tiny.edits import STILL_SHARES, styled
from train_tiny.model import MODEL
from train_tiny.phrasings import KEEP, STYLES, UNDO
from train_tiny.pictures import coloured_noise, gradients
from train_tiny.prompts import CLASSES, COLOURS, PLACES, phrases
from train_tiny.prompts import keys as edit_keys
from train_tiny.rollout import Editor, empty_memory, sample
from train_tiny.scenes import MOVING, looped
from train_tiny.streams import PromptBook, World
from train_tiny.vae_stage import reconstruct

Pair = Callable[[range], tuple[Tensor, Tensor]]
"""Source and true edit (B, 3, F, H, W) in [-1, 1] of any frames."""

WORLD_SEED = 20_000
OBJECT_FAMILIES = ("recolour", "remove", "add", "background")
CHUNKS = 8
LONG = 42
EARLY, LATE = 2, 40
"""The chunks that are compared for drift; long streams show the same in both."""

STATELESS = 9
"""Chunks of a stream whose state is zeroed before every chunk: what forgets cannot drift."""

LOOP = (LATE - EARLY) * MODEL.geometry.steady_frames
PER_KEY = 6
MISREAD, GROUP = 3.0, 16
"""Decibels from which an instruction counts as misread, and how many edits are tried at once."""

CHOICES, SEEN = 192, -20.0
"""Scenes in which one of several objects is to be edited, and decibels of change below which nothing is to be done."""

SHIFT = MODEL.geometry.steady_frames // 2


@dataclass(frozen=True)
class Played:
    """One chunk of B streams: PSNR terms (B, F) as squared errors, and the frames."""

    source: Tensor
    target: Tensor
    edited: Tensor

    def error(self, shown: Tensor) -> Tensor:
        """Mean squared error (B, F) of 8-bit frames on a scale of 0 to 1."""
        return ((shown - self.target) / 255).square().mean(dim=(2, 3, 4))


@torch.no_grad()
def play(editor: Editor, vae: VAE, pair: Pair, prompt: Prompt, chunks: int, forget: bool = False) -> Iterator[Played]:
    """Edit streams with the 4-step sampler; `forget` zeroes the denoiser's state before every chunk."""
    memory, encoded, decoded, start = empty_memory(), None, None, 0
    generator = torch.Generator(editor.table.get_buffer("time_cos").device).manual_seed(0)
    for index in range(chunks):
        chunk = MODEL.geometry.chunk(index)
        source, target = (pixels_to_uint8(video) for video in pair(range(start, start + chunk.frames)))
        start += chunk.frames
        latent, encoded = vae.encoder(uint8_to_pixels(source), encoded)
        if forget:
            memory = memory.map(torch.zeros_like)
        edited, memory = sample(editor, latent, prompt, memory, chunk.start, generator)
        video, decoded = vae.decoder(edited, decoded)
        yield Played(source.float(), target.float(), pixels_to_uint8(video).float())


def decibels(errors: Tensor) -> Tensor:
    return -10 * torch.log10(errors.clamp_min(1e-10))


def score(editor: Editor, vae: VAE, pair: Pair, prompt: Prompt, chunks: int, forget: bool = False) -> dict[str, Tensor]:
    """Squared errors (B, F) of source and edit, and (B, F - 1) of the change of the error from frame to frame."""
    source, edited, change, last = [], [], [], None
    for played in play(editor, vae, pair, prompt, chunks, forget):
        source.append(played.error(played.source))
        edited.append(played.error(played.edited))
        residual = played.edited - played.target
        joined = residual if last is None else torch.cat([last, residual], 1)
        change.append((joined[:, 1:] - joined[:, :-1]).abs().mean(dim=(2, 3, 4)))
        last = residual[:, -1:]
    return {"source": torch.cat(source, 1), "edited": torch.cat(edited, 1), "change": torch.cat(change, 1)}


def borders(changes: int) -> Tensor:
    """Which of the changes (changes,) from frame to frame of a stream are across a chunk border."""
    return (torch.arange(changes) + 1 - MODEL.geometry.first_frames) % MODEL.geometry.steady_frames == 0


def border_ratio(change: Tensor) -> float:
    """Mean change of the error (B, F - 1) across chunk borders over the one inside chunks."""
    border = borders(change.shape[1]).to(change.device)
    return float(change[:, border].mean() / change[:, ~border].mean())


def paired_border_ratio(change: Tensor, shifted: Tensor) -> float:
    """The same at the same moments: (..., F - 1) of streams, and of the same ones begun `SHIFT` frames later.

    A moment at a border of one stream is inside a chunk of the other, so the motion at that moment cancels out.
    """
    stop = min(change.shape[-1], SHIFT + shifted.shape[-1])
    pairs = torch.stack([change[..., SHIFT:stop], shifted[..., : stop - SHIFT]], dim=-2)
    border = torch.stack([borders(stop)[SHIFT:], borders(stop - SHIFT)]).to(pairs.device)
    return float((pairs * border).sum() / (pairs * border.flip(0)).sum())


def held_out_world(clip: Tensor, seed: int = WORLD_SEED) -> World:
    """Scenes over frames of the held-out clip and fresh noise and gradients; none of these pictures was trained on."""
    torch.manual_seed(seed)
    frames = clip[:: max(1, len(clip) // 16)].permute(0, 3, 1, 2).float() / 255
    large = torch.nn.functional.interpolate(frames, (288, 512), mode="bicubic").clamp(0, 1)
    bank = torch.cat(
        [large[:2], large, coloured_noise(8, clip.device).clamp(0, 1), gradients(8, clip.device).clamp(0, 1)]
    )
    world = World(bank.half(), seed, MODEL.geometry)
    world.leaves = 0
    return world


def real_pair(clip: Tensor, keys: list[str]) -> Pair:
    """The clip (F, H, W, 3) forwards and backwards for ever, one stream for every look in `keys`."""
    order = torch.cat([torch.arange(len(clip)), torch.arange(len(clip) - 2, 0, -1)])

    def pair(frames: range) -> tuple[Tensor, Tensor]:
        index = order[torch.arange(frames.start, frames.stop) % len(order)].to(clip.device)
        source = clip[index].permute(3, 0, 1, 2).float().div(255).expand(len(keys), -1, -1, -1, -1)
        return 2 * source - 1, 2 * styled(source, keys) - 1

    return pair


def scene_pair(world: World, keys: list[str], loop: int = 0) -> Pair:
    """Scenes in which every key can be carried out; with `loop`, all comes round after as many frames."""
    scenes = world.scenes(len(keys), world.rng.integers(1, 4, len(keys)))
    for row, key in enumerate(keys):
        family, *words = key.split("/")
        if family in ("recolour", "remove"):
            others = [kind for kind in range(len(CLASSES)) if kind != CLASSES.index(words[0])]
            scenes.kind[row] = torch.tensor([CLASSES.index(words[0]), *world.rng.permutation(others)[:3]])
    shown = looped(scenes, loop) if loop else scenes
    return lambda frames: world.pair(shown, keys, frames)


def delayed(pair: Pair) -> Pair:
    """The same streams, begun `SHIFT` frames later."""
    return lambda frames: pair(range(frames.start + SHIFT, frames.stop + SHIFT))


def object_keys(family: str, rng: np.random.Generator, count: int) -> list[str]:
    colours = list(COLOURS)
    draw = {
        "recolour": lambda: f"recolour/{rng.choice(CLASSES)}/{rng.choice(colours)}",
        "add": lambda: f"add/{rng.choice(CLASSES)}/{rng.choice(colours)}",
        "remove": lambda: f"remove/{rng.choice(CLASSES)}",
        "background": lambda: f"background/{rng.choice(PLACES)}",
    }[family]
    return [draw() for _ in range(count)]


def wrong(keys: list[str], rng: np.random.Generator) -> list[str]:
    """For every key an instruction that asks for something else: another look, or another family of edits."""
    styles = list(STYLES)
    names = [key.split("/")[0] for key in keys]
    looks = {name: styles[(i + 1) % len(styles)] for i, name in enumerate(styles)} | {KEEP: "sepia"}
    return [
        looks[name] if name in looks else object_keys(OBJECT_FAMILIES[OBJECT_FAMILIES.index(name) - 1], rng, 1)[0]
        for name in names
    ]


class Judge:
    """Everything that is asked about one checkpoint, on one held-out clip uint8 (F, H, W, 3)."""

    def __init__(self, editor: Editor, vae: VAE, book: PromptBook, clip: Tensor) -> None:
        self.editor, self.vae, self.book, self.clip = editor, vae, book, clip

    @torch.no_grad()
    def vae_psnr(self) -> float:
        shown = reconstruct(self.vae, self.clip[None], MODEL.geometry)
        truth = self.clip[None, : shown.shape[1]]
        return float(decibels(((shown.float() - truth.float()) / 255).square().mean()))

    def prompt(self, keys: list[str], held_out: bool = True) -> Prompt:
        with torch.no_grad():
            return self.editor.prompt(*self.book.draw(np.random.default_rng(1), keys, held_out))

    def table(self, real: bool) -> list[dict[str, float | str]]:
        """One row per edit: PSNR of source, edit and wrongly prompted edit against the truth, and the border ratio."""
        world = held_out_world(self.clip)
        count = 1 if real else PER_KEY
        keys = [name for name in (*STYLES, KEEP) for _ in range(count)]
        if not real:
            keys += [key for name in OBJECT_FAMILIES for key in object_keys(name, world.rng, 2 * count)]
        pair = real_pair(self.clip, keys) if real else scene_pair(world, keys)
        right = score(self.editor, self.vae, pair, self.prompt(keys), CHUNKS)
        again = score(self.editor, self.vae, delayed(pair), self.prompt(keys), CHUNKS - 1)
        other = score(self.editor, self.vae, pair, self.prompt(wrong(keys, world.rng)), CHUNKS)
        names = [key.split("/")[0] for key in keys]
        rows = [
            self.row(name, [i for i, n in enumerate(names) if n == name], right, again, other)
            for name in dict.fromkeys(names)
        ]
        for row in rows:
            print(
                {name: value if isinstance(value, str) else round(value, 2) for name, value in row.items()}, flush=True
            )
        return rows

    @staticmethod
    def row(
        name: str,
        streams: list[int],
        right: dict[str, Tensor],
        again: dict[str, Tensor],
        other: dict[str, Tensor],
    ) -> dict[str, float | str]:
        psnr = {kind: float(decibels(right[kind][streams].mean(1)).mean()) for kind in ("source", "edited")}
        mistaken = float(decibels(other["edited"][streams].mean(1)).mean())
        border = paired_border_ratio(right["change"][streams], again["change"][streams])
        return {"edit": name, **psnr, "gain": psnr["edited"] - psnr["source"], "wrong": mistaken, "border": border}

    def drift(self, forget: bool = False) -> list[float]:
        """PSNR of every chunk of long streams of all kinds of edits, averaged over streams."""
        world = held_out_world(self.clip, WORLD_SEED + 1)
        keys = [*STYLES, KEEP]
        keys += [key for name in OBJECT_FAMILIES for key in object_keys(name, world.rng, 3)]
        pair = scene_pair(world, keys, LOOP)
        count = STATELESS if forget else LONG
        edited = score(self.editor, self.vae, pair, self.prompt(keys), count, forget)["edited"]
        first, steady = MODEL.geometry.first_frames, MODEL.geometry.steady_frames
        chunks = [edited[:, :first], *edited[:, first:].split(steady, 1)]
        return [float(decibels(chunk.mean(1)).mean()) for chunk in chunks]

    @torch.no_grad()
    def misread(self) -> list[tuple[str, float]]:
        """The held-out instructions that edit a first chunk worse than a trained one by `MISREAD`, and by how much."""
        world, lost = held_out_world(self.clip, WORLD_SEED + 3), []
        wanted = [key for key in edit_keys() if not key.startswith(UNDO)]
        for start in range(0, len(wanted), GROUP):
            keys = wanted[start : start + GROUP]
            source, target = scene_pair(world, keys)(range(MODEL.geometry.first_frames))
            source, target = self.vae.encoder(source)[0], self.vae.encoder(target)[0]
            rows = [self.book.rows[True][key] for key in keys]
            best = self.errors(source, target, [int(self.book.rows[False][key][0]) for key in keys])
            for turn in range(max(map(len, rows))):
                worse = self.errors(source, target, [int(row[min(turn, len(row) - 1)]) for row in rows]) - best
                lost += [
                    (phrases(key, held_out=True)[turn], round(drop, 2))
                    for key, row, drop in zip(keys, rows, worse.tolist(), strict=True)
                    if turn < len(row) and drop > MISREAD
                ]
        return lost

    @torch.no_grad()
    def choice(self) -> float:
        """Share of first chunks with two or three objects that have less than half the error once edited.

        If another object than the named one is edited, there is more error than before.
        """
        world, hits = held_out_world(self.clip, WORLD_SEED + 4), []
        for _ in range(CHOICES // GROUP):
            scenes = world.scenes(GROUP, world.rng.integers(2, MOVING + 1, GROUP))
            keys = world.keys(scenes, STILL_SHARES)
            source, target = world.pair(scenes, keys, range(MODEL.geometry.first_frames))
            source, target = self.vae.encoder(source)[0], self.vae.encoder(target)[0]
            asked = -decibels((source - target).square().mean(dim=(1, 2, 3, 4)))
            missed = self.errors(source, target, [int(self.book.rows[True][key][0]) for key in keys])
            hits.append((missed < asked - MISREAD)[asked > SEEN])
        return float(torch.cat(hits).float().mean())

    def errors(self, source: Tensor, target: Tensor, rows: list[int]) -> Tensor:
        """Decibels (B,) by which latents edited with instructions `rows` of the book miss their target."""
        prompt = self.editor.prompt(self.book.ids[rows], self.book.mask[rows])
        generator = torch.Generator(source.device).manual_seed(0)
        edited, _ = sample(self.editor, source, prompt, empty_memory(), 0, generator)
        return -decibels((edited - target).square().mean(dim=(1, 2, 3, 4)))

    def sheet(self, path: Path) -> None:
        """A picture with source, truth and edit of every kind of edit, at the end of the third chunk."""
        world = held_out_world(self.clip, WORLD_SEED + 2)
        objects = [key for name in OBJECT_FAMILIES for key in object_keys(name, world.rng, 3)]
        looks = [*STYLES, KEEP]
        bands = []
        for pair, keys in ((real_pair(self.clip, looks), looks), (scene_pair(world, objects), objects)):
            *_, last = play(self.editor, self.vae, pair, self.prompt(keys), 3)
            bands += [
                torch.cat([x[i, -1] for x in (last.source, last.target, last.edited)], 1) for i in range(len(keys))
            ]
        half = (len(bands) + 1) // 2
        columns = [torch.cat(bands[:half]), torch.cat(bands[half:])]
        height = max(len(column) for column in columns)
        padded = [torch.nn.functional.pad(column, (0, 0, 0, 0, 0, height - len(column))) for column in columns]
        Image.fromarray(torch.cat(padded, 1).byte().cpu().numpy()).save(path, quality=85)
