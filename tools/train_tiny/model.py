"""The architecture that is trained, and the precision it is trained in."""

import torch

from sana_export.configs import TINY

MODEL = TINY


def mixed_precision(device: torch.device) -> torch.autocast:
    """bf16 matrices on a GPU; a CPU trains in FP32, where bf16 convolutions are slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
