"""Pixels between 8-bit frames and the VAE's range, and source frames cut to the model's size (spec 7.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def uint8_to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, H, W) in [-1, 1]."""
    # TensorRT converts uint8 and can do nothing else with it.
    return (frames.float().permute(0, 4, 1, 2, 3) / 255 - 0.5) / 0.5


def pixels_to_uint8(video: Tensor) -> Tensor:
    """Float (B, 3, F, H, W), nominally in [-1, 1], to uint8 (B, F, H, W, 3): clamped, then truncated."""
    return (127.5 * video + 127.5).clamp(0, 255).permute(0, 2, 3, 4, 1).to(torch.uint8)


def resize_and_crop(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, height, width) in [-1, 1]: scaled to cover, cropped at the centre."""
    batch = frames.shape[0]
    tall, wide = cover(frames.shape[2], frames.shape[3], height, width)
    video = uint8_to_pixels(frames).transpose(1, 2).flatten(0, 1)
    video = F.interpolate(video, size=(tall, wide), mode="bilinear", align_corners=False, antialias=False)
    top, left = (tall - height) // 2, (wide - width) // 2
    video = video[:, :, top : top + height, left : left + width]
    return video.unflatten(0, (batch, -1)).transpose(1, 2)


def cover(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Height and width scaled by the larger of the two ratios to the target, rounded to whole pixels."""
    scale = max(target_height / height, target_width / width)
    return round(height * scale), round(width * scale)
