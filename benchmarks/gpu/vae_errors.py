"""The VAE's engines on this GPU against the exported network in float32, on random weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from sana_export.configs import SANA_STREAMING, VAEConfig
from sana_export.graph_modules import DecoderGraph, EncoderGraph
from sana_export.vae import VAE, VAEDecoder, VAEEncoder
from sana_export.vae_layers import TemporalConv
from sana_gpu.vae import Engines, PartEngine, load_vae, prepare_vae
from sana_runtime.state import IN, OUT

PARTS = ("vae_encoder", "vae_decoder")
SMALL, PRODUCTION = (192, 320), (SANA_STREAMING.height, SANA_STREAMING.width)
ALLOWED = 1.2
"""How many times the error of the plain network in bfloat16 the engines may make."""

DEVICE = "cuda"


@torch.no_grad()
def random_vae(config: VAEConfig, seed: int = 0) -> VAE:
    """The reference network in float32, weights drawn on the device so that activations keep their size."""
    with torch.device("meta"):
        vae = VAE(config)
    vae = vae.to_empty(device=DEVICE).eval()
    torch.manual_seed(seed)
    for parameter in vae.parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.normal_(0, scale)
    for part in (vae.encoder, vae.decoder):
        part.latents_mean.normal_(0, 0.1)
        part.latents_std.uniform_(0.8, 1.2)
        part.name_convolutions()
    for module in vae.modules():
        if isinstance(module, TemporalConv):
            module.stacked = False
    return vae


def configured(size: tuple[int, int]) -> dict[str, Any]:
    model = replace(SANA_STREAMING, height=size[0], width=size[1])
    return {"vae": asdict(model.vae), "geometry": asdict(model.geometry), "streams": 8}


def network(part: str, vae: VAE) -> VAEEncoder | VAEDecoder:
    return vae.encoder if part == "vae_encoder" else vae.decoder


def engines(part: str, vae: VAE, size: tuple[int, int]) -> Engines:
    """Of one part in bfloat16, at `size` (rows, columns)."""
    config = configured(size)
    weights = prepare_vae(part, config["vae"], network(part, vae).state_dict())
    return load_vae(part, config, weights, str(vae.encoder.latents_mean.device))


def example(engine: PartEngine, seed: int) -> Tensor:
    """What a chunk is given: smooth moving colours, or a random latent."""
    spec, device = engine.inputs[0], engine.memory.device
    generator = torch.Generator(device).manual_seed(seed)
    if spec.dtype != "uint8":
        return torch.randn(spec.shape, device=device, generator=generator)
    _, frames, height, width, _ = spec.shape
    coarse = torch.rand(1, 3, 3, height // 32, width // 32, device=device, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (255 * smooth).permute(0, 2, 3, 4, 1).to(torch.uint8).contiguous()


def state_of(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removesuffix(OUT) + IN: tensor for name, tensor in outputs.items() if name.endswith(OUT)}


def chunks(part: str, found: Engines, count: int) -> list[Tensor]:
    """What the engines make of the first `count` chunks."""
    made, state = [], {}
    for index in range(count):
        engine = found["steady" if index else "first"]
        outputs = engine.run({engine.inputs[0].name: example(engine, index), **state})
        made.append(outputs[engine.outputs[0].name])
        state = state_of(outputs)
    return made


@torch.inference_mode()
def reference(part: str, vae: VAE, found: Engines, count: int) -> list[Tensor]:
    """The same chunks by the exported network, in its precision; the decoder's before they become 8-bit frames."""
    net = network(part, vae)
    wrapper = EncoderGraph if part == "vae_encoder" else DecoderGraph
    made, state = [], []
    for index in range(count):
        given = example(found["steady" if index else "first"], index)
        output, *state = wrapper(net, net.state_names if index else ())(given, *state)
        made.append(output)
    return made


def off(got: Tensor, wanted: Tensor) -> float:
    """Root mean square error, relative; of 8-bit frames, in steps of 255."""
    scale = 255.0**2 if wanted.dtype == torch.uint8 else wanted.double().square().mean()
    return float(((got.double() - wanted.double()).square().mean() / scale).sqrt())


@contextmanager
def as_it_is() -> Iterator[None]:
    """Convolutions in float32 proper, and without trying all ways to do each: some take seconds."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.benchmark = before


def errors(part: str, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Of the engines and of the plain network in bfloat16, against the network in float32, per chunk."""
    vae = random_vae(SANA_STREAMING.vae)
    found = engines(part, vae, size)
    with as_it_is():
        got = chunks(part, found, count)
        wanted = reference(part, vae, found, count)
        plain = reference(part, vae.to(torch.bfloat16), found, count)
    ours = [off(*pair) for pair in zip(got, wanted, strict=True)]
    theirs = [off(*pair) for pair in zip(plain, wanted, strict=True)]
    worst = max(a / b for a, b in zip(ours, theirs, strict=True))
    return {"ours": ours, "plain bf16": theirs, "ratio": worst, "passes": worst <= ALLOWED}


CHECKS = (("vae_encoder", SMALL, 3), ("vae_decoder", SMALL, 3), ("vae_encoder", PRODUCTION, 1))
"""Parts, sizes and how many chunks of a stream."""


def check(of: str) -> dict[str, Any]:
    """Errors of one part, at a moderate size or also at the production size; `passes`: all are small enough."""
    found = {f"{size[1]}x{size[0]}": errors(part, size, count) for part, size, count in CHECKS if part == of}
    return {"passes": all(entry["passes"] for entry in found.values()), **found}
