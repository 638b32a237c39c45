"""Layers of the LTX-2 video VAE, frames before channels, with their temporal context handed in and out (spec 7.3)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_export.dtypes import upcast
from sana_runtime.errors import ConfigError

Stride = tuple[int, int, int]

CONTEXT = 2
"""Past input frames that a causal three-tap convolution needs."""


class Carry:
    """The last input frames of every causal convolution: `past` is what a call reads, `next` what it leaves behind."""

    def __init__(self, past: Mapping[str, Tensor] | None, names: tuple[str, ...]) -> None:
        self.past = past or {}
        self.next: dict[str, Tensor] = {}
        if self.past and self.past.keys() != set(names):
            wrong = sorted(self.past.keys() ^ set(names))
            raise ConfigError(f"the carried VAE state belongs to another network: {', '.join(wrong[:5])} do not match")

    @property
    def at_start(self) -> bool:
        return not self.past

    def extend(self, name: str, x: Tensor) -> Tensor:
        """`x` (B, F, C, H, W) behind the two frames before it; at the start of a stream the first frame, twice."""
        past = x[:, :1].expand(-1, CONTEXT, -1, -1, -1) if self.at_start else self.past[name].transpose(1, 2)
        x = torch.cat([past.to(x.dtype), x], dim=1)
        self.next[name] = x[:, -CONTEXT:].transpose(1, 2)
        return x


class TemporalConv(nn.Module):
    """3x3x3 convolution over (B, F, C, H, W); the weight has its three temporal taps stacked on channels.

    Rows and columns are padded by one, with zeros or by reflection; frames by two on the left (causal) or one on each
    side, always by replication.
    """

    def __init__(self, channels_in: int, channels_out: int, reflect: bool, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels_out, 3 * channels_in, 3, 3))
        self.bias = nn.Parameter(torch.empty(channels_out))
        self.reflect = reflect
        self.causal = causal
        self.stacked = True
        self.name = ""

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        x = carry.extend(self.name, x) if self.causal else torch.cat([x[:, :1], x, x[:, -1:]], dim=1)
        if self.reflect:
            batch = x.shape[0]
            x = F.pad(x.flatten(0, 1), (1, 1, 1, 1), mode="reflect").unflatten(0, (batch, -1))
        return self._planes(x) if self.stacked else self._volume(x)

    def _planes(self, x: Tensor) -> Tensor:
        """One 2-D convolution over stacked frames: onnxruntime runs it 1.3 times as fast as the 3-D one on a CPU."""
        batch, frames = x.shape[0], x.shape[1] - CONTEXT
        taps = torch.cat([x[:, tap : tap + frames] for tap in range(3)], dim=2).flatten(0, 1)
        y = F.conv2d(taps, self.weight, self.bias, padding=0 if self.reflect else 1)
        return y.unflatten(0, (batch, frames))

    def _volume(self, x: Tensor) -> Tensor:
        """The 3-D convolution: in an engine for a GPU it needs a quarter less memory, as it stacks no frames."""
        weight = self.weight.unflatten(1, (3, -1)).transpose(1, 2)
        padding = 0 if self.reflect else (0, 1, 1)
        return F.conv3d(x.transpose(1, 2), weight, self.bias, padding=padding).transpose(1, 2)


def channel_norm(x: Tensor) -> Tensor:
    """RMS norm of (B, F, C, H, W) over channels, without weights; the mean is taken in float32."""
    # Only the mean: an engine would write the whole of a wide x to memory between its two kernels.
    return x * torch.rsqrt(upcast(x).square().mean(dim=2, keepdim=True) + 1e-8).to(x.dtype)


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm(conv1(silu(norm(x))))))."""

    def __init__(self, channels: int, reflect: bool, causal: bool) -> None:
        super().__init__()
        self.conv1 = TemporalConv(channels, channels, reflect, causal)
        self.conv2 = TemporalConv(channels, channels, reflect, causal)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        h = self.conv1(F.silu(channel_norm(x)), carry)
        return x + self.conv2(F.silu(channel_norm(h)), carry)


class Downsampler(nn.Module):
    """Convolution and space-time unshuffle, plus the unshuffled input averaged over groups of channels."""

    def __init__(self, channels_in: int, channels_out: int, stride: Stride) -> None:
        super().__init__()
        self.stride = stride
        self.channels_out = channels_out
        self.conv = TemporalConv(channels_in, channels_out // volume(stride), reflect=False, causal=True)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        if carry.at_start and self.stride[0] == 2:
            x = torch.cat([x[:, :1], x], dim=1)
        skip = unshuffle(x, self.stride).unflatten(2, (self.channels_out, -1)).mean(dim=3)
        return unshuffle(self.conv(x, carry), self.stride) + skip


class Upsampler(nn.Module):
    """Convolution and space-time shuffle to half the channels, plus the shuffled input repeated over channels.

    At the start of a stream a temporal stride drops the first frame, so that one latent frame becomes one frame.
    """

    def __init__(self, channels: int, stride: Stride, causal: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv = TemporalConv(channels, channels * volume(stride) // 2, reflect=True, causal=causal)

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        skip = shuffle(x, self.stride).repeat(1, 1, volume(self.stride) // 2, 1, 1)
        y = shuffle(self.conv(x, carry), self.stride) + skip
        return y[:, self.stride[0] - 1 :] if carry.at_start else y


def volume(stride: Stride) -> int:
    return stride[0] * stride[1] * stride[2]


def unshuffle(x: Tensor, stride: Stride) -> Tensor:
    """(B, F, C, H, W) to (B, F/t, C*t*h*w, H/h, W/w); the channel index counts c, then t, h, w."""
    t, h, w = stride
    x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(1, (-1, t))
    return x.permute(0, 1, 3, 2, 5, 7, 4, 6).flatten(2, 5)


def shuffle(x: Tensor, stride: Stride) -> Tensor:
    """Inverse of `unshuffle`."""
    t, h, w = stride
    x = x.unflatten(2, (-1, t, h, w))
    return x.permute(0, 1, 3, 2, 6, 4, 7, 5).flatten(6, 7).flatten(4, 5).flatten(1, 2)


def patchify(video: Tensor, patch: int) -> Tensor:
    """(B, F, 3, H, W) to (B, F, 3*p*p, H/p, W/p); the channel index counts colour, column, row (spec 7.3)."""
    x = video.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return x.permute(0, 1, 2, 6, 4, 3, 5).flatten(2, 4)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """Inverse of `patchify`."""
    x = x.unflatten(2, (-1, patch, patch))
    return x.permute(0, 1, 2, 5, 4, 6, 3).flatten(5, 6).flatten(3, 4)
