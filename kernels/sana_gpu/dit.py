"""The whole transformer: one evaluation, and the four denoise passes and the cache pass of a chunk (spec 3, 4.2)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_gpu.attention import ATTENTION
from sana_gpu.dit_blocks import Block, Form, Modulation, Norm, Past, Scene, Weights, normed
from sana_gpu.dit_weights import prepare_dit, stored_precisions
from sana_gpu.linear import Linear
from sana_kernels.dit_launcher import Both
from sana_runtime.errors import choose
from sana_runtime.schedule import Schedule

__all__ = ["DiT", "Moment", "prepare_dit", "stored_precisions"]

SINUSOID_WIDTH = 256
CLEAN = 0.0
"""The timestep at which a finished chunk is evaluated once more for what later chunks read."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Moment:
    """What depends on the timestep alone: every block's modulation (depth, 6, C), the final shift and scale (2, C)."""

    blocks: Tensor
    final: Tensor


class DiT:
    """The model at the timesteps of one schedule; it holds no state of any stream."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, schedule: Schedule, attention: str) -> None:
        head = config["hidden"] // config["heads"]
        attend = choose("attention", attention, ATTENTION)
        self._embedder = Linear.load(weights, "x_embedder")
        self._final = Linear.load(weights, "final_layer.linear")
        self.blocks = [Block(weights, f"blocks.{i}", head, attend) for i in range(config["depth"])]
        self.schedule = schedule
        moments = list(_moments(weights, config["depth"], (*schedule.timesteps, CLEAN)))
        self.denoising, self.clean = moments[:-1], moments[-1]
        self.dtype = weights["x_embedder.weight"].dtype

    def chunk(self, noise: Tensor, source: Tensor, pasts: Sequence[Past], scene: Scene) -> tuple[Tensor, State]:
        """noise, source f32 (B, channels, T, H, W) to the latent like noise, and the state that the chunk leaves.

        Keys and values of softmax blocks are not in the state: they are left where `pasts` has them.
        """
        pasts = [_with_tail(past, block) for past, block in zip(pasts, self.blocks, strict=True)]
        latent, fixed = (x.flatten(2).transpose(1, 2) for x in (noise, source))
        for moment, (sigma, following) in zip(self.denoising, pairwise(self.schedule.sigmas), strict=True):
            velocity = self.evaluate(latent, fixed, moment, pasts, scene)
            latent = latent + (following - sigma) * velocity.float()
        state = self.save(latent, fixed, pasts, scene)
        return latent.transpose(1, 2).reshape(noise.shape), state

    def evaluate(self, latent: Tensor, source: Tensor, moment: Moment, pasts: Sequence[Past], scene: Scene) -> Tensor:
        """latent and source (B, N, channels) to the velocity (B, N, channels); `pasts` as blocks read them."""
        x, h = self._to_last(latent, source, moment, pasts, scene)
        following = Norm(moment.final[0], moment.final[1], Form.of(self._final))
        _, h, _ = self.blocks[-1](x, h, Modulation(*moment.blocks[-1]), pasts[-1], scene, following)
        return self._final(h)

    def save(self, latent: Tensor, source: Tensor, pasts: Sequence[Past], scene: Scene) -> State:
        """The state that a finished chunk leaves, by the names of the engines' outputs."""
        state: State = {}
        x, h = self._to_last(latent, source, self.clean, pasts, scene, state)
        last = len(self.blocks) - 1
        left = self.blocks[last].leave(x, h, Modulation(*self.clean.blocks[last]), pasts[last], scene)
        return state | _named(last, left)

    def _to_last(
        self,
        latent: Tensor,
        source: Tensor,
        moment: Moment,
        pasts: Sequence[Past],
        scene: Scene,
        state: State | None = None,
    ) -> tuple[Tensor, Both]:
        """What the last block reads; `state`, if given, is filled with what all others leave."""
        tokens = torch.cat([latent, source], dim=-1).to(self.dtype)
        x = self._embedder((tokens, tokens))
        vectors = [Modulation(*block) for block in moment.blocks]
        norms = [Norm(m.shift, m.scale, block.form) for m, block in zip(vectors, self.blocks, strict=True)]
        h = normed(x, norms[0])
        for i, block in enumerate(self.blocks[:-1]):
            x, h, left = block(x, h, vectors[i], pasts[i], scene, norms[i + 1])
            if state is not None:
                state |= _named(i, left)
        return x, h


def _named(block: int, left: Mapping[str, Tensor]) -> State:
    """Copies, as what a block leaves may be part of a tensor of many times the size."""
    return {f"block{block:02d}.{name}": tensor.clone() for name, tensor in left.items()}


def _with_tail(past: Past, block: Block) -> Past:
    """What the frame left of the chunk adds is the same in all passes."""
    return past if past.tail is None else replace(past, tail=block.temporal.left(past.tail))


def _moments(weights: Weights, depth: int, timesteps: Sequence[float]) -> Iterator[Moment]:
    """Computed in float32, and kept in float16 for models in bfloat16: it has three more bits, and half the traffic."""
    wide = {name: x.float() for name, x in weights.items() if name.startswith(("t_embedder", "t_block"))}

    def linear(x: Tensor, path: str) -> Tensor:
        return F.linear(x, wide[f"{path}.weight"], wide[f"{path}.bias"])

    device = weights["t_block.1.weight"].device
    tables = torch.stack([weights[f"blocks.{i}.scale_shift_table"] for i in range(depth)])
    kind = torch.float16 if weights["x_embedder.weight"].dtype == torch.bfloat16 else torch.float32
    for timestep in timesteps:
        embedded = F.silu(linear(_sinusoid(timestep).to(device), "t_embedder.mlp.0"))
        time = linear(embedded, "t_embedder.mlp.2")
        yield Moment(
            (tables + linear(F.silu(time), "t_block.1").unflatten(-1, (6, -1))).to(kind),
            (weights["final_layer.scale_shift_table"] + time).to(kind),
        )


def _sinusoid(timestep: float) -> Tensor:
    """(256,), cosine half first (spec 3.3); the release was trained with integer times, so a fraction is dropped."""
    half = SINUSOID_WIDTH // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
    frequencies = torch.tensor([math.exp(exponent) for exponent in exponents.tolist()])
    angles = math.trunc(timestep) * frequencies
    return torch.cat([angles.cos(), angles.sin()])
