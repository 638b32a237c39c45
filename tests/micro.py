"""The smallest complete model: every kind of layer, and sizes that build and run in seconds."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sana_build.build import build
from sana_build.gpus import GPUS
from sana_build.plan import Plan
from sana_export.checkpoint import resolve
from sana_export.configs import TINY, DiTConfig, VAEConfig
from sana_quant.policy import load_policy
from sana_runtime.manifest import Manifest

MICRO = replace(
    TINY,
    name="micro",
    dit=DiTConfig(
        depth=4,
        hidden=64,
        heads=2,
        latent_channels=8,
        source_channels=8,
        caption_width=128,
        text_tokens=32,
    ),
    vae=VAEConfig(
        latent_channels=8,
        encoder_widths=(16, 16, 32),
        encoder_layers=(1, 1, 1, 1),
        downsample=("spatiotemporal", "spatiotemporal", "temporal"),
        decoder_widths=(8, 16, 32),
        decoder_layers=(1, 1, 1, 1),
        upsample=("temporal", "spatiotemporal", "spatiotemporal"),
    ),
    height=32,
    width=48,
)


def micro_plan(output: Path, streams: int = 3) -> Plan:
    checkpoint = resolve("random:0", MICRO)
    return Plan(MICRO, checkpoint, GPUS["cpu"], load_policy("fp32", MICRO.dit.depth), output, streams)


def build_micro(output: Path, streams: int = 3) -> Manifest:
    return build(micro_plan(output, streams), Console(quiet=True))
