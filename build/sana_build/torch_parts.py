"""The four stages of the `torch` backend: how their weights are written, and what their engines are measured by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_build.onnx_engines import EXAMPLE_PROMPT
from sana_build.torch_trials import Lower, Trial, decoder_trial, denoiser_trial, encoder_trial, text_trial, to_bf16
from sana_export.text import TextEncoder, prompt_tokenizer
from sana_gpu.dit import prepare_dit, stored_precisions
from sana_gpu.vae import prepare_vae
from sana_quant.fake import fake_quantised
from sana_quant.groups import layers
from sana_runtime.denoiser import DenoiserStage
from sana_runtime.engine import Engine
from sana_runtime.manifest import Manifest
from sana_runtime.stages import Stage, TextEncoderStage, VAEDecoderStage, VAEEncoderStage

if TYPE_CHECKING:
    from sana_build.plan import Plan
    from sana_quant.calibration import Calibration

PROGRAM = "prompt.pt2"
WEIGHTS = "weights.safetensors"

Make = Callable[[Mapping[str, Engine], Manifest], Stage]


@dataclass(frozen=True)
class Part:
    """One stage: its file and who writes it, what its engines are told, and how they are measured.

    `module` is the definition in PyTorch, in FP32 on the device; `lower` makes of it what the engines may be as far
    from as it is from itself. `stored` are the precisions that the weights of policy layers will have, by module path.
    """

    stage: str
    file: str
    write: Callable[[Path], None]
    config: Mapping[str, Any]
    make: Make
    module: nn.Module
    trial: Trial
    lower: Lower = to_bf16
    stored: Mapping[str, str] = field(default_factory=dict)


def parts(plan: "Plan", calibration: "Calibration | None", device: str) -> Iterator[Part]:
    """One after the other, each with its weights on the device while it is in use."""
    text, answer = _text_part(plan, device)
    yield text
    del text
    yield from _vae_parts(plan, device)
    yield _denoiser_part(plan, calibration, answer, device)


def _text_part(plan: "Plan", device: str) -> tuple[Part, tuple[Tensor, Tensor]]:
    """The text encoder, and its answer to the example prompt."""
    model = plan.model
    tokenizer = prompt_tokenizer(plan.checkpoint.tokenizer_path(), model.dit.text_tokens)
    tokens = tokenizer.encode(EXAMPLE_PROMPT)
    encoder = plan.checkpoint.load_text(model).to(device)
    with torch.inference_mode():
        text, mask = (x.cpu() for x in encoder(*(torch.from_numpy(array).to(device) for array in tokens)))
    config = {"tokens": tokens[0].shape[1], "text": [model.dit.text_tokens, model.dit.caption_width]}
    part = Part(
        "text_encoder",
        PROGRAM,
        lambda path: _write_program(encoder, tokens, device, path),
        config,
        lambda engines, manifest: TextEncoderStage(engines, manifest, tokenizer.encode),
        encoder,
        text_trial(tokens, EXAMPLE_PROMPT, device),
    )
    return part, (text, mask)


def _write_program(encoder: TextEncoder, tokens: Sequence[np.ndarray], device: str, path: Path) -> None:
    example = tuple(torch.from_numpy(array).to(device) for array in tokens)
    with torch.no_grad():
        torch.export.save(torch.export.export(to_bf16(deepcopy(encoder)), example), path)


def _vae_parts(plan: "Plan", device: str) -> Iterator[Part]:
    vae = plan.checkpoint.load_vae(plan.model.vae).to(device)
    geometry = plan.model.geometry
    config = {"vae": asdict(plan.model.vae), "geometry": asdict(geometry), "streams": plan.streams}
    rows = (
        ("vae_encoder", vae.encoder, VAEEncoderStage, encoder_trial),
        ("vae_decoder", vae.decoder, VAEDecoderStage, decoder_trial),
    )
    for stage, module, make, trial in rows:
        tensors = prepare_vae(stage, asdict(plan.model.vae), module.state_dict())
        yield Part(stage, WEIGHTS, _saver(tensors), config, make, module, trial(geometry, device))


def _denoiser_part(
    plan: "Plan",
    calibration: "Calibration | None",
    prompt: tuple[Tensor, Tensor],
    device: str,
) -> Part:
    model, policy = plan.model, plan.policy
    dit = plan.checkpoint.load_dit(model.dit).to(device)
    wanted = {layer.path: policy.precision(layer.group, layer.block) for layer in layers(model.dit.depth)}
    config = {"dit": asdict(model.dit), "stream": asdict(model.stream), "geometry": asdict(model.geometry)}
    tensors = prepare_dit(config["dit"], dit.state_dict(), wanted, dict(calibration.amax) if calibration else {})

    def lower(module: nn.Module) -> nn.Module:
        return fake_quantised(to_bf16(module), policy, calibration) if calibration else to_bf16(module)

    trial = denoiser_trial(model, prompt[0].numpy(), prompt[1].numpy(), device)
    stored = stored_precisions(tensors)
    told = {**config, "streams": plan.streams}
    return Part("denoiser", WEIGHTS, _saver(tensors), told, DenoiserStage, dit, trial, lower, stored)


def _saver(tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    return lambda path: save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
