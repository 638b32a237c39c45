"""Noise schedules and noise of the streaming sampler, as plain numbers (spec 5.1)."""

from dataclasses import dataclass

import numpy as np

FIXED_TIMESTEPS = {4: (1000.0, 961.0, 893.0, 743.0), 2: (1000.0, 743.0)}
"""Distilled step lists of the release; the flow shift has no effect on them."""

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Timesteps on the 0..1000 scale, and one more sigma than timesteps (the last is 0)."""

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]


def streaming_schedule(steps: int, shift: float = 8.0) -> Schedule:
    """The fixed list for 2 or 4 steps, the shifted flow-match Euler schedule for any other count."""
    if steps in FIXED_TIMESTEPS:
        timesteps = FIXED_TIMESTEPS[steps]
        return Schedule(timesteps, (*(t / TRAIN_TIMESTEPS for t in timesteps), 0.0))
    lowest = float(_shifted(np.array(1 / TRAIN_TIMESTEPS), shift))
    sigmas = _shifted(np.linspace(1.0, lowest, steps), shift)
    return Schedule(tuple((sigmas * TRAIN_TIMESTEPS).tolist()), (*sigmas.tolist(), 0.0))


def _shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigma / (1 + (shift - 1) * sigma)


def chunk_noise(seed: int, chunk: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal FP32 noise of one chunk, a function of (seed, chunk) alone, so that any machine can redraw it."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, chunk]))
    return generator.standard_normal(shape, dtype=np.float32)
