"""A short stream through every stage of the `torch` backend, against the model definitions in PyTorch on one device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from sana_build.rollouts import float32_latents
from sana_export.dit import DiT
from sana_export.dtypes import compute_dtype, narrow
from sana_export.graph_modules import DecoderGraph, EncoderGraph
from sana_export.graphs import example_frames, example_latent
from sana_export.sampler import DiTStream
from sana_runtime.errors import BuildError
from sana_runtime.schedule import chunk_noise, streaming_schedule
from sana_runtime.stages import Request, Stage

if TYPE_CHECKING:
    from sana_export.configs import ModelConfig
    from sana_runtime.geometry import StreamGeometry

CHUNKS = 3
MARGIN = 1.2
"""How much further from FP32 an engine may be than PyTorch in the same precision, which rounds in other places."""


@dataclass(frozen=True)
class Trial:
    """Chunks of one stream for a stage, the output to look at, and what a module of PyTorch's answers to them."""

    requests: Sequence[Request]
    output: str
    answers: Callable[[nn.Module], list[Tensor]]


Lower = Callable[[nn.Module], nn.Module]


def to_bf16(module: nn.Module) -> nn.Module:
    return narrow(module, torch.bfloat16)


@torch.inference_mode()
def check(name: str, stage: Stage, trial: Trial, module: nn.Module, lower: Lower = to_bf16) -> dict[str, float]:
    """Relative RMS error against FP32 of the first chunk and of the worst steady one; `module` is lowered in the end.

    Raises BuildError where it is above the error of the lowered module, times MARGIN.
    """
    served = [stage.run(request)[trial.output] for request in trial.requests]
    exact = trial.answers(module)
    plain = trial.answers(lower(module))
    ours = [relative_rms(torch.from_numpy(a), b) for a, b in zip(served, exact, strict=True)]
    theirs = [relative_rms(a, b) for a, b in zip(plain, exact, strict=True)]
    for chunk, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if not our <= MARGIN * their:
            raise BuildError(
                f"{name}: chunk {chunk} of the engine is {our:.2e} away from FP32 and PyTorch in its precision is "
                f"{their:.2e} away (allowed is {MARGIN} times that); the repository is not written"
            )
    return {"first": ours[0], "steady": max(ours[1:], default=ours[0])}


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double().cpu()
    return float((got.double().cpu() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def text_trial(tokens: Sequence[np.ndarray], prompt: str, device: str) -> Trial:
    """The text of one prompt, whose tokens are `tokens`."""

    def answers(encoder: nn.Module) -> list[Tensor]:
        return [encoder(*(torch.from_numpy(array).to(device) for array in tokens))[0]]

    return Trial([Request({"prompt": np.frombuffer(prompt.encode(), np.uint8)[None]})], "text", answers)


def encoder_trial(geometry: "StreamGeometry", device: str) -> Trial:
    frames = [example_frames(geometry, geometry.chunk(index)) for index in range(CHUNKS)]
    return Trial(_requests("frames", frames), "source", _by_chunks(EncoderGraph, frames, device))


def decoder_trial(geometry: "StreamGeometry", device: str) -> Trial:
    latents = [example_latent(geometry, geometry.chunk(index)) for index in range(CHUNKS)]
    return Trial(_requests("latent", latents), "edited", _by_chunks(DecoderGraph, latents, device))


def _by_chunks(
    graph: Callable[..., nn.Module], inputs: list[Tensor], device: str
) -> Callable[[nn.Module], list[Tensor]]:
    def answers(part: nn.Module) -> list[Tensor]:
        outputs: list[Tensor] = []
        state: list[Tensor] = []
        for chunk in inputs:
            output, *state = graph(part, part.state_names if state else ())(chunk.to(device), *state)
            outputs.append(output.cpu())
        return outputs

    return answers


def denoiser_trial(model: "ModelConfig", text: np.ndarray, mask: np.ndarray, device: str) -> Trial:
    """`text` (1, L, D) and `mask` (1, L) of an example prompt, float32."""
    chunks = [model.geometry.chunk(index) for index in range(CHUNKS)]
    sources = [example_latent(model.geometry, chunk, seed=1) for chunk in chunks]
    noises = [torch.from_numpy(chunk_noise(0, chunk.index, model.geometry.latent_shape(chunk))) for chunk in chunks]

    def answers(module: nn.Module) -> list[Tensor]:
        dit = cast(DiT, module)
        stream = DiTStream(dit, streaming_schedule(model.stream.steps), model.stream.window, model.stream.sink)
        with float32_latents(dit):
            prompt = dit.prompt(*(torch.from_numpy(x).to(device, compute_dtype(dit)) for x in (text, mask)))
            pairs = zip(noises, sources, strict=True)
            return [stream.step(noise.to(device), source.to(device), prompt).cpu() for noise, source in pairs]

    return Trial(_requests("source", sources, text=text, text_mask=mask), "latent", answers)


def _requests(name: str, tensors: Sequence[Tensor], **more: np.ndarray) -> list[Request]:
    return [
        Request({name: tensor.numpy(), **more}, {"chunk": index}, "trial", start=index == 0)
        for index, tensor in enumerate(tensors)
    ]
