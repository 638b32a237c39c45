"""The architecture that is trained: the `tiny` model of sana_export, at the sizes the training was tuned for."""

from dataclasses import replace

import torch

from sana_export.configs import TINY, VAEConfig

LATENT_CHANNELS = 96

MODEL = replace(
    TINY,
    dit=replace(TINY.dit, latent_channels=LATENT_CHANNELS, source_channels=LATENT_CHANNELS, mlp_ratio=2.5),
    vae=VAEConfig(
        latent_channels=LATENT_CHANNELS,
        encoder_widths=(96, 96, 96),
        encoder_layers=(0, 1, 1, 0),
        downsample=("spatiotemporal", "spatiotemporal", "temporal"),
        decoder_widths=(40, 80, 160),
        decoder_layers=(4, 3, 2, 0),
        upsample=("temporal", "spatiotemporal", "spatiotemporal"),
    ),
)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 matrices on a GPU; a CPU trains in FP32, where bf16 convolutions are slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
