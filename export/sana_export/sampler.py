"""Samplers: Euler steps of a stream, chunk by chunk, and the flow DPM-Solver++ of a whole clip (spec 4.2, 5)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sana_export.caches import Cache, Prompt
from sana_export.dit import DiT
from sana_export.rope import rope_rows
from sana_export.window import WindowCache
from sana_runtime.errors import SequenceError
from sana_runtime.geometry import clip_boundaries
from sana_runtime.schedule import TRAIN_TIMESTEPS, Schedule


@dataclass(frozen=True)
class DiTCall:
    """One evaluation inside a stream: `name` is step0, step1, ... or save; `frames` are absolute latent frames."""

    chunk: int
    name: str
    frames: range
    seen_chunks: list[int]
    latent: Tensor
    timestep: Tensor
    velocity: Tensor
    past: list[Cache] | None
    written: list[Cache]


Recorder = Callable[[DiTCall], None]


class DiTStream:
    """One open-ended stream of batch B; it holds the absolute position and what earlier chunks left."""

    def __init__(self, dit: DiT, schedule: Schedule, window: int, sink: bool, recorder: Recorder | None = None) -> None:
        self.dit, self.schedule, self.recorder = dit, schedule, recorder
        self.caches = WindowCache(window, sink)
        self.start = 0
        self.ended = False

    @torch.inference_mode()
    def step(self, noise: Tensor, source: Tensor, prompt: Prompt, last: bool = False) -> Tensor:
        """Edit the next chunk: noise and source latent (B, channels, T, H, W) to the edited latent of the same shape.

        With `last` the pass that writes the cache is skipped and the stream ends. Raises SequenceError after that, or
        past the end of the rotary table.
        """
        if self.ended:
            raise SequenceError("this stream has ended with its last chunk: start a new one")
        frames = range(self.start, self.start + noise.shape[2])
        evaluate = self._evaluator(frames, source, prompt)
        latent = noise
        steps = zip(self.schedule.timesteps, pairwise(self.schedule.sigmas), strict=True)
        for index, (time, (sigma, following)) in enumerate(steps):
            velocity, _ = evaluate(f"step{index}", latent, time)
            latent = latent + (following - sigma) * velocity
        if not last:
            self.caches.append(evaluate("save", latent, 0.0)[1])
        self.start, self.ended = frames.stop, last
        return latent

    def _evaluator(
        self, frames: range, source: Tensor, prompt: Prompt
    ) -> Callable[[str, Tensor, float], tuple[Tensor, list[Cache]]]:
        """One chunk's DiT as a function of what changes from step to step; all of them see the same past."""
        config = self.dit.config
        cos, sin = rope_rows(config.head_dim, frames, source.shape[3], source.shape[4], config.max_frames)
        rope = cos.to(source.device), sin.to(source.device)
        chunk, seen, past = self.caches.chunk, self.caches.chunks, self.caches.past()

        def evaluate(name: str, latent: Tensor, time: float) -> tuple[Tensor, list[Cache]]:
            timestep = torch.full((len(latent),), time, device=latent.device)
            velocity, written = self.dit(latent, source, timestep, prompt, rope, past)
            if self.recorder:
                self.recorder(DiTCall(chunk, name, frames, seen, latent, timestep, velocity, past, written))
            return velocity, written

        return evaluate


@torch.inference_mode()
def edit_clip(
    dit: DiT,
    noise: Tensor,
    source: Tensor,
    text: Tensor,
    mask: Tensor,
    schedule: Schedule,
    window: int,
    sink: bool,
    boundaries: Sequence[int] | None = None,
    recorder: Recorder | None = None,
) -> Tensor:
    """Edit a finite clip as a stream: noise, source (B, channels, T, H, W), text (B, L, D), mask (B, L) to the latent.

    `boundaries` are the first latent frames of the chunks and the end; raises ConfigError if the clip is too short.
    """
    stream = DiTStream(dit, schedule, window, sink, recorder)
    prompt = dit.prompt(text, mask)
    spans = list(pairwise(boundaries if boundaries is not None else clip_boundaries(noise.shape[2])))
    chunks = [
        stream.step(noise[:, :, start:stop], source[:, :, start:stop], prompt, last=stop == spans[-1][1])
        for start, stop in spans
    ]
    return torch.cat(chunks, dim=2)


Velocity = Callable[[Tensor, float], Tensor]
"""Velocity of a latent at a time between 0 and 1."""


def clip_velocity(dit: DiT, source: Tensor, text: Tensor, mask: Tensor) -> Velocity:
    """The DiT on whole clips: source (B, channels, T, H, W), text (B, L, D), mask (B, L)."""
    frames, height, width = source.shape[2:]
    cos, sin = rope_rows(dit.config.head_dim, range(frames), height, width, dit.config.max_frames)
    rope = cos.to(source.device), sin.to(source.device)
    with torch.inference_mode():
        prompt = dit.prompt(text, mask)

    @torch.inference_mode()
    def velocity(latent: Tensor, time: float) -> Tensor:
        timestep = torch.full((len(latent),), time * TRAIN_TIMESTEPS, device=latent.device)
        return dit(latent, source, timestep, prompt, rope)[0]

    return velocity


def guided(velocity: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance over a `velocity` of batch 2B whose rows are [negative, positive]."""

    def guide(latent: Tensor, time: float) -> Tensor:
        negative, positive = velocity(torch.cat([latent, latent]), time).chunk(2)
        return negative + scale * (positive - negative)

    return guide


def dpm_timesteps(steps: int, shift: float) -> list[float]:
    """Times of the solver, `steps` + 1 from nearly 1 down to exactly 0 (spec 5.2)."""
    rising = 1 - np.linspace(1.0, 0.001, steps + 1)
    shifted = shift * rising / (1 + (shift - 1) * rising)
    return shifted[::-1].tolist()


def dpm_solver(velocity: Velocity, noise: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Multistep flow DPM-Solver++ of order 2: yields the latent after every update, the last one is the result."""
    latent, earlier = noise, None
    for index, (time, following) in enumerate(pairwise(times)):
        clean = latent - time * velocity(latent, time)
        direction = clean
        if earlier is not None and following > 0:
            direction = clean + _extrapolation(times[index - 1], time, following) * (clean - earlier)
        # exp(-h) without the logarithm of a zero sigma: at the last update it is exactly 0.
        decay = (1 - time) / time * following / (1 - following)
        latent = following / time * latent - (1 - following) * (decay - 1) * direction
        earlier = clean
        yield latent


def _extrapolation(before: float, time: float, following: float) -> float:
    """h_i / (2 h_{i-1}) of three times in falling order, h being steps of log((1 - t) / t)."""
    log_ratio = [math.log((1 - t) / t) for t in (before, time, following)]
    return (log_ratio[2] - log_ratio[1]) / (2 * (log_ratio[1] - log_ratio[0]))
