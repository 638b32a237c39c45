"""The VAE's weights as its GPU engines read them: taps and channels of one output side by side, biases in float32."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from sana_kernels.conv_naive import INPUT, fold_weights
from sana_runtime.errors import ConfigError, choose

STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
WINOGRAD = {"vae_encoder": (128, 256, 512, 1024), "vae_decoder": (128, 256, 512)}
"""Channels of the residual convolutions that are faster by Winograd, per part (benchmarks/gpu/vae.py on an H200)."""

HALF = {torch.bfloat16: torch.float16, torch.float32: torch.float32}
"""What Winograd's weights and products are in: float16 has three more bits, and its range is enough (`fits`)."""

PARTS = ("vae_encoder", "vae_decoder")


def prepare_vae(
    part: str,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype = torch.bfloat16,
    winograd: Mapping[str, Container[int]] = WINOGRAD,
) -> dict[str, Tensor]:
    """What the engines of `part` ("vae_encoder", "vae_decoder") read, from the part's own tensors by name.

    `config` holds the fields of the VAE's configuration. A convolution (Co, 3 Ci, 3, 3), its temporal taps stacked,
    becomes (Co, 3, 3, 3, Ci) in `dtype`, or (9, Co, 3, Ci) for the channels that `winograd` has of the part. Raises
    ConfigError for a decoder that is not causal.
    """
    choose("part of the VAE", part, dict.fromkeys(PARTS))
    if part == "vae_decoder" and not config["decoder_causal"]:
        raise ConfigError("the decoder of this model looks at later frames: only a causal decoder can stream")
    prepared = {}
    for name, tensor in weights.items():
        order = output_order(part, config, name, tensor.shape[0])
        chosen = tensor if order is None else tensor[order.to(tensor.device)]
        residual = winograd.get(part, ()) if ".resnets." in name else ()
        prepared[name] = prepare_conv(chosen, dtype, residual) if chosen.ndim == 4 else chosen.float().contiguous()
    return prepared


def prepare_conv(weight: Tensor, dtype: torch.dtype, winograd: Container[int]) -> Tensor:
    """(Co, 3 Ci, 3, 3), rounded once: (Co, 3, 3, 3, Ci), or by taps in space, (9, Co, 3, Ci)."""
    outputs, inputs = weight.shape[0], weight.shape[1] // 3
    weight = weight.unflatten(1, (3, inputs))
    if inputs == outputs and outputs in winograd:
        by_tap = weight.permute(3, 4, 0, 1, 2).flatten(0, 1)
        if fits(by_tap):
            return by_tap.to(HALF[dtype]).contiguous()
    return weight.permute(0, 1, 3, 4, 2).to(dtype).contiguous()


def fits(weight: Tensor) -> bool:
    """Whether no Winograd product of weights (9, Co, 3, Ci) can leave the range of float16.

    Inputs are RMS-normed, so a pixel's C channels have a norm of sqrt(C) at most, and SiLU only shrinks it; a place of
    a folded window is a sum of pixels with known factors, and Cauchy and Schwarz bound its product with the weights.
    """
    folded = fold_weights(weight.float())
    factors = torch.tensor(INPUT, device=folded.device).abs().sum(1)
    places = factors[:, None] * factors
    norms = folded.flatten(2).norm(dim=2).amax(1).unflatten(0, (6, 6))
    bound = norms * places * (3 * folded.shape[3]) ** 0.5
    return bool(bound.max() < torch.finfo(torch.float16).max)


def output_order(part: str, config: Mapping[str, Any], name: str, channels: int) -> Tensor | None:
    """Output channels of a convolution in the order its consumer reads them; None where that is the reference's."""
    if part == "vae_encoder" and name.startswith("conv_out"):
        # The last one is the logarithm of a variance that nothing reads.
        return torch.arange(config["latent_channels"])
    if "upsamplers" not in name:
        return None
    t, h, w = STRIDES[config["upsample"][int(name.split(".")[1])]]
    return torch.arange(channels).unflatten(0, (-1, t * h * w)).T.flatten()
