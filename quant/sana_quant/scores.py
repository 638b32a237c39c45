"""How far an edit is from the reference edit: RelRMSE of latents, and a perceptual distance of frames."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8
LUMA = (0.299, 0.587, 0.114)
GMSD_CONTRAST = 0.0026
LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of frames (F, 3, H, W) in [-1, 1] from reference frames of the same shape: one value (F,) each, 0 if equal."""


@dataclass(frozen=True)
class Perceptual:
    """A perceptual distance and what to call it in a report; `load` gives it on a device."""

    name: str
    title: str
    load: Callable[[str], Distance]


def relative_rmse(latent: Tensor, reference: Tensor) -> Tensor:
    """RelRMSE (B,) of latents (B, C, T, h, w): over the standard deviation of the reference (paper, equation 6)."""
    error = (latent - reference).float().flatten(1)
    return error.square().mean(1).sqrt() / (reference.float().flatten(1).std(1, correction=0) + EPSILON)


def gmsd(frames: Tensor, reference: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation (F,): how unevenly the edges of two pictures (F, 3, H, W) differ."""
    ours, theirs = (_gradients(picture) for picture in (frames, reference))
    similarity = (2 * ours * theirs + GMSD_CONTRAST) / (ours.square() + theirs.square() + GMSD_CONTRAST)
    return similarity.flatten(1).std(1, correction=0)


def _gradients(frames: Tensor) -> Tensor:
    """Prewitt gradient magnitudes (F, 1, H / 2, W / 2) of the luma on a scale of 0 to 1, halved as by the eye."""
    weights = frames.new_tensor(LUMA)[:, None, None]
    luma = F.avg_pool2d(((frames + 1) / 2 * weights).sum(1, keepdim=True), 2)
    across = frames.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    return F.conv2d(F.pad(luma, (1, 1, 1, 1), "replicate"), kernels).square().sum(1, keepdim=True).sqrt()


def perceptual() -> Perceptual:
    """LPIPS (AlexNet) if the package `lpips` and the weights it needs are on this machine, else GMSD."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_BACKBONE
    if importlib.util.find_spec("lpips") and weights.is_file():
        return Perceptual("lpips", "LPIPS (AlexNet)", _lpips)
    return Perceptual("gmsd", "GMSD, standing in for LPIPS, whose weights are not on this machine", lambda _: gmsd)


def _lpips(device: str) -> Distance:
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    return lambda frames, reference: network(frames, reference).flatten()
