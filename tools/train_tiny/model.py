"""The architecture that is trained: the `tiny` model of sana_export, at the sizes the training was tuned for."""

from dataclasses import replace

import torch

from sana_export.configs import TINY, VAEConfig

LATENT_CHANNELS = 96

MODEL = replace(
    TINY,
    dit=replace(TINY.dit, latent_channels=LATENT_CHANNELS, source_channels=LATENT_CHANNELS, mlp_ratio=2.0),
    vae=VAEConfig(
        latent_channels=LATENT_CHANNELS,
        # Space is folded last in the encoder and unfolded first in the decoder: wherever a frame is small, it needs
        # more channels than the latent has, or detail that does not move is lost.
        encoder_widths=(64, 128, 256),
        encoder_layers=(0, 0, 1, 0),
        downsample=("temporal", "spatiotemporal", "spatiotemporal"),
        decoder_widths=(32, 64, 128),
        decoder_layers=(4, 3, 2, 0),
        upsample=("spatiotemporal", "spatiotemporal", "temporal"),
    ),
)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 matrices on a GPU; a CPU trains in FP32, where bf16 convolutions are slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
