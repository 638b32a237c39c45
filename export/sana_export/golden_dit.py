"""Golden sections of the whole transformer: forward (a), streaming rollout (b, f) and bidirectional sampler (g)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sana_export.caches import Cache, GDNCache, KVCache
from sana_export.dit import DiT
from sana_export.golden import Check, GoldenArrays, load_dit
from sana_export.rope import rope_rows
from sana_export.sampler import DiTCall, Velocity, clip_velocity, dpm_solver, dpm_timesteps, edit_clip, guided
from sana_runtime.geometry import clip_boundaries
from sana_runtime.schedule import TRAIN_TIMESTEPS, Schedule, streaming_schedule

FORWARD_LIMIT = 2e-5
SCHEDULE_LIMIT = 1e-5
GUIDED_LIMIT = 5e-4
UNGUIDED_LIMIT = 1e-4


@contextmanager
def taps(dit: DiT) -> Iterator[dict[str, Tensor]]:
    """While open, the outputs of the latest call's modules by their golden names."""
    modules: dict[str, nn.Module] = {
        name: dit.get_submodule(name)
        for name in ("x_embedder", "t_embedder", "t_block", "y_embedder", "attention_y_norm")
    }
    for index, block in enumerate(dit.blocks):
        modules[f"block{index}"] = block
        modules |= {f"block{index}.{part}": block.get_submodule(part) for part in ("attn", "cross_attn", "mlp")}
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def text_and_mask(arrays: GoldenArrays, suffix: str = "") -> tuple[Tensor, Tensor]:
    """Text (B, L, D), stored with a unit axis, and its mask (B, L)."""
    return arrays[f"text{suffix}"][:, 0], arrays[f"mask{suffix}"]


def section_a(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """One forward of the bidirectional model, with every module output."""
    arrays = GoldenArrays(directory / "a_bidirectional_forward.npz")
    dit = load_dit(directory, config, streaming=False)
    latent = arrays["x"]
    rope = rope_rows(dit.config.head_dim, range(latent.shape[2]), latent.shape[3], latent.shape[4])
    with taps(dit) as seen:
        prompt = dit.prompt(*text_and_mask(arrays))
        velocity, _ = dit(latent, arrays["source"], arrays["timestep"], prompt, rope)
    for name in ("out", "out_bf16model"):
        yield arrays.check(name, velocity, FORWARD_LIMIT)
    for match in arrays.matching(r"tap\.(.+)"):
        if match[1] in seen:
            yield arrays.check(match[0], seen[match[1]], FORWARD_LIMIT)
    yield from arrays.uncovered()


def section_b(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """The streaming rollout: every call's inputs and outputs, and every cache."""
    arrays = GoldenArrays(directory / "b_streaming_rollout.npz")
    dit, stream = load_dit(directory, config, streaming=True), config["streaming"]
    times = [float(t) for t in stream["timesteps"]]
    schedule = Schedule(tuple(times), (*(t / TRAIN_TIMESTEPS for t in times), 0.0))
    rollout = Rollout(arrays, stream["chunk_indices"])
    with taps(dit) as rollout.seen:
        latents = edit_clip(
            dit,
            arrays["noise"],
            arrays["source"],
            *text_and_mask(arrays),
            schedule,
            stream["num_cached_blocks"],
            stream["sink_token"],
            stream["chunk_indices"],
            rollout.record,
        )
    yield from rollout.checks
    yield arrays.check("chunk_indices", torch.tensor(_boundaries(config)), 0.0)
    yield arrays.check("latents", latents, FORWARD_LIMIT)
    yield from arrays.uncovered()


class Rollout:
    """Compares the calls of a stream with section b as they happen."""

    def __init__(self, arrays: GoldenArrays, boundaries: list[int]) -> None:
        self.arrays, self.boundaries = arrays, boundaries
        self.seen: dict[str, Tensor] = {}
        self.checks: list[Check] = []

    def record(self, call: DiTCall) -> None:
        prefix = f"chunk{call.chunk}.{call.name}"
        rows = len(self.arrays[f"{prefix}.t"])
        for name, found in {"x": call.latent, "t": call.timestep[:rows], "v": call.velocity}.items():
            self._check(f"{prefix}.{name}", found)
        self._positions(prefix, call)
        for match in self.arrays.matching(rf"{re.escape(prefix)}\.tap\.(.+)"):
            if match[1] in self.seen:
                self._check(match[0], self.seen[match[1]])
        if call.name == "save":
            self._caches(call)

    def _positions(self, prefix: str, call: DiTCall) -> None:
        """The release passes the frames of the window and of the chunk, and the range from the first to the last."""
        spans = [range(self.boundaries[i], self.boundaries[i + 1]) for i in call.seen_chunks]
        frames = [frame for span in (*spans, call.frames) for frame in span]
        self._check(f"{prefix}.rope_range", torch.tensor([frames[0], call.frames.stop]))
        if f"{prefix}.frame_index" in self.arrays:
            self._check(f"{prefix}.frame_index", torch.tensor(frames))
        for match in self.arrays.matching(rf"chunk{call.chunk}\.window\.block(\d+)\.cached_tokens"):
            cache = call.past[int(match[1])] if call.past else None
            tokens = cache.k.shape[2] if isinstance(cache, KVCache) else 0
            self._check(match[0], torch.tensor(tokens))

    def _caches(self, call: DiTCall) -> None:
        for block, cache in enumerate(call.written):
            for name, tensor in golden_cache(cache).items():
                self._check(f"chunk{call.chunk}.cache.block{block}.{name}", tensor)

    def _check(self, name: str, found: Tensor) -> None:
        self.checks.append(self.arrays.check(name, found, FORWARD_LIMIT))


def golden_cache(cache: Cache) -> dict[str, Tensor]:
    """A cache in the layouts of the golden data, channels before tokens, up to unit axes."""
    if isinstance(cache, GDNCache):
        return {"state_kv": cache.state_kv, "state_z": cache.state_z, "tconv": cache.tconv.mT}
    return {"k": cache.k.mT, "v": cache.v.mT, "tconv": cache.tconv.mT}


def section_f(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """Final latents of the streaming sampler for several step counts and windows."""
    arrays = GoldenArrays(directory / "f_streaming_sampler.npz")
    dit = load_dit(directory, config, streaming=True)
    inputs = (arrays["noise"], arrays["source"], *text_and_mask(arrays))
    boundaries = config["streaming"]["chunk_indices"]
    latents: dict[tuple[str, ...], Tensor] = {}
    for match in arrays.matching(r"latents_steps(\d+)_(?:window(\d+)_(sink|nosink)|fullhistory)(?:_bf16model)?"):
        steps, window, sink = setting = match.groups()
        if setting not in latents:
            schedule = streaming_schedule(int(steps))
            latents[setting] = edit_clip(dit, *inputs, schedule, int(window or -1), sink == "sink", boundaries)
        yield arrays.check(match[0], latents[setting], FORWARD_LIMIT)
    yield arrays.check("chunk_indices", torch.tensor(_boundaries(config)), 0.0)
    yield from arrays.uncovered()


def _boundaries(config: dict[str, Any]) -> list[int]:
    return clip_boundaries(config["streaming"]["latent_frames"], config["streaming"]["base_chunk_frames"])


def section_g(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """The bidirectional sampler with guidance, call by call, and without."""
    arrays = GoldenArrays(directory / "g_bidirectional_sampler.npz")
    dit = load_dit(directory, config, streaming=False)
    noise, source, shift = arrays["noise"], arrays["source"], float(arrays["flow_shift"])
    positive, negative = text_and_mask(arrays), text_and_mask(arrays, "_neg")
    times = dpm_timesteps(int(arrays["steps"]), shift)

    both = (torch.cat(pair) for pair in zip(negative, positive, strict=True))
    calls: list[tuple[Tensor, Tensor]] = []
    velocity = _recorded(clip_velocity(dit, torch.cat([source, source]), *both), calls)
    latents = [noise, *dpm_solver(guided(velocity, float(arrays["cfg"])), noise, times)]
    for index, (time, value) in enumerate(calls):
        yield arrays.check(f"call{index}.t", time.expand(arrays[f"call{index}.t"].shape), SCHEDULE_LIMIT)
        yield arrays.check(f"call{index}.v", value, GUIDED_LIMIT)
    for index, latent in enumerate(latents):
        yield arrays.check(f"intermediate{index}", latent, GUIDED_LIMIT)
    yield arrays.check("latents", latents[-1], GUIDED_LIMIT)

    *_, unguided = dpm_solver(clip_velocity(dit, source, *positive), noise, times)
    yield arrays.check("latents_cfg1", unguided, UNGUIDED_LIMIT)
    yield arrays.check("timesteps", torch.tensor(times), SCHEDULE_LIMIT)
    for match in arrays.matching(r"timesteps_(\d+)"):
        yield arrays.check(match[0], torch.tensor(dpm_timesteps(int(match[1]), shift)), SCHEDULE_LIMIT)
    yield from arrays.uncovered()


def _recorded(velocity: Velocity, calls: list[tuple[Tensor, Tensor]]) -> Velocity:
    def call(latent: Tensor, time: float) -> Tensor:
        value = velocity(latent, time)
        calls.append((torch.tensor([time * TRAIN_TIMESTEPS]), value))
        return value

    return call
