"""The LTX-2 video VAE as pure streaming functions of (input, state): chunk by chunk equals the whole clip (spec 7)."""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sana_export.configs import DOWN_STRIDES, VAEConfig
from sana_export.vae_layers import (
    Carry,
    Downsampler,
    ResnetBlock,
    TemporalConv,
    Upsampler,
    channel_norm,
    patchify,
    unpatchify,
)
from sana_runtime.errors import ConfigError, RequestError, choose

State = dict[str, Tensor]

TILE_LATENTS = 4
TILE_STRIDE = 8
TILE_BLEND = 16


class ResnetStack(nn.Module):
    """A run of residual blocks at one width, after or before a change of resolution."""

    def __init__(self, channels: int, layers: int, reflect: bool, causal: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, reflect, causal) for _ in range(layers))

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, carry)
        return x


class DownBlock(ResnetStack):
    """Residual blocks, then one down layer."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, kind: str) -> None:
        super().__init__(channels_in, layers, reflect=False, causal=True)
        stride = choose("VAE downsampling", kind, DOWN_STRIDES)
        self.downsamplers = nn.ModuleList([Downsampler(channels_in, channels_out, stride)])

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        return self.downsamplers[0](super().forward(x, carry), carry)


class UpBlock(nn.Module):
    """One up layer that halves the channels, then residual blocks."""

    def __init__(self, channels_in: int, layers: int, kind: str, causal: bool) -> None:
        super().__init__()
        stride = choose("VAE upsampling", kind, DOWN_STRIDES)
        self.upsamplers = nn.ModuleList([Upsampler(channels_in, stride, causal)])
        self.resnets = nn.ModuleList(ResnetBlock(channels_in // 2, True, causal) for _ in range(layers))

    def forward(self, x: Tensor, carry: Carry) -> Tensor:
        x = self.upsamplers[0](x, carry)
        for resnet in self.resnets:
            x = resnet(x, carry)
        return x


class StreamingModule(nn.Module):
    """Names every convolution by its module path, which is also the name of its carried state."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    def name_convolutions(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, TemporalConv):
                module.name = name

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the carried tensors in execution order."""
        return tuple(m.name for m in self.modules() if isinstance(m, TemporalConv) and m.causal)


class VAEEncoder(StreamingModule):
    """Causal encoder from pixels to normalised latents, the posterior mean (spec 7.2, 7.4)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        widths = (config.latent_channels, *config.encoder_widths)
        self.conv_in = TemporalConv(3 * config.patch**2, widths[0], reflect=False, causal=True)
        stages = zip(widths, widths[1:], config.encoder_layers, config.downsample, strict=False)
        self.down_blocks = nn.ModuleList(DownBlock(*stage) for stage in stages)
        self.mid_block = ResnetStack(widths[-1], config.encoder_layers[-1], reflect=False, causal=True)
        self.conv_out = TemporalConv(widths[-1], config.latent_channels + 1, reflect=False, causal=True)
        self.name_convolutions()

    def forward(self, video: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, State]:
        """Encode the next frames of a stream.

        `video` is (B, 3, F, H, W) in [-1, 1]: F = 1 + 8a at the start of a stream (`state` None or empty), 8b later.
        Returns the latent (B, C, T, h, w) and the state, one (B, c, 2, H, W) tensor per convolution, for the next
        call. Raises RequestError for any other number of frames.
        """
        carry = Carry(state, self.state_names)
        self._check_frames(video.shape[2], carry.at_start)
        x = self.conv_in(patchify(video.transpose(1, 2), self.config.patch), carry)
        for block in self.down_blocks:
            x = block(x, carry)
        x = self.conv_out(F.silu(channel_norm(self.mid_block(x, carry))), carry)
        latent = x[:, :, : self.config.latent_channels].transpose(1, 2)
        return (latent - per_channel(self.latents_mean)) / per_channel(self.latents_std), carry.next

    def _check_frames(self, frames: int, at_start: bool) -> None:
        ratio = self.config.temporal_ratio
        extra = 1 if at_start else 0
        if frames < max(extra, 1) or (frames - extra) % ratio:
            rule = f"1 + {ratio}a frames at the start of a stream" if at_start else f"{ratio}b frames after the start"
            raise RequestError(f"{frames} frames leave a remainder in the encoder: it takes {rule}")


class VAEDecoder(StreamingModule):
    """Decoder from normalised latents to pixels: of streams if `config.decoder_causal`, else whole clips (7.6)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        causal = config.decoder_causal
        width = config.decoder_widths[-1]
        if any(wide != 2 * narrow for narrow, wide in pairwise(config.decoder_widths)):
            raise ConfigError(
                f"decoder widths {config.decoder_widths} do not double from one to the next: up layers halve"
            )
        layers = config.decoder_layers[::-1]
        self.conv_in = TemporalConv(config.latent_channels, width, True, causal)
        self.mid_block = ResnetStack(width, layers[0], True, causal)
        stages = zip(config.decoder_widths[::-1], layers[1:], config.upsample, strict=True)
        self.up_blocks = nn.ModuleList(UpBlock(*stage, causal) for stage in stages)
        self.conv_out = TemporalConv(config.decoder_widths[0] // 2, 3 * config.patch**2, True, causal)
        self.name_convolutions()

    @property
    def causal(self) -> bool:
        return self.config.decoder_causal

    def forward(self, latent: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, State]:
        """Decode the next latents of a stream.

        `latent` is (B, C, T, h, w) with any T >= 1. Returns video (B, 3, F, H, W), nominally in [-1, 1] and not
        clamped, and the state for the next call; F = 1 + 8(T - 1) at the start of a stream and 8T later. The
        symmetric decoder takes and returns no state. Raises RequestError for a call without latents.
        """
        if latent.shape[2] < 1:
            raise RequestError("the decoder was given no latent frame: it takes one or more")
        carry = Carry(state, self.state_names)
        latent = latent * per_channel(self.latents_std) + per_channel(self.latents_mean)
        x = self.mid_block(self.conv_in(latent.transpose(1, 2), carry), carry)
        for block in self.up_blocks:
            x = block(x, carry)
        x = self.conv_out(F.silu(channel_norm(x)), carry)
        return unpatchify(x, self.config.patch).transpose(1, 2), carry.next


class VAE(nn.Module):
    """Encoder and decoder of one VAE file."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VAEEncoder(config)
        self.decoder = VAEDecoder(config)


def per_channel(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def decode_tiled(decoder: VAEDecoder, latent: Tensor) -> Tensor:
    """What the release script shows: the symmetric decoder on tiles of 24 frames every 8, cross-faded (spec 7.5).

    `latent` is a whole clip (B, C, T, h, w); returns video (B, 3, 8(T - 1) + 1, H, W). Each tile fades in from the
    already faded one before it.
    """
    kept = []
    previous = None
    for index in range(latent.shape[2]):
        tile, _ = decoder(latent[:, :, index : index + TILE_LATENTS])
        if previous is not None:
            tile = crossfade(previous, tile[:, :, 1:])
        kept.append(tile[:, :, : TILE_STRIDE + (previous is None)])
        previous = tile
    frames = TILE_STRIDE * (latent.shape[2] - 1) + 1
    return torch.cat(kept, dim=2)[:, :, :frames]


def crossfade(before: Tensor, after: Tensor) -> Tensor:
    """`after` with its first frames, 16 at most, mixed with the last frames of `before` (B, 3, F, H, W)."""
    length = min(before.shape[2], after.shape[2], TILE_BLEND)
    if not length:
        return after
    weight = (torch.arange(length, dtype=after.dtype) / length)[:, None, None]
    mixed = before[:, :, -length:] * (1 - weight) + after[:, :, :length] * weight
    return torch.cat([mixed, after[:, :, length:]], dim=2)


def causal_taps(released: Mapping[str, Tensor]) -> State:
    """Released tensors with every decoder kernel made causal: taps (a, b, c) become (0, a, b + c) (spec 7.6)."""
    return {
        key: _causal_kernel(value) if key.startswith("decoder.") and value.ndim == 5 else value
        for key, value in released.items()
    }


def _causal_kernel(weight: Tensor) -> Tensor:
    past, present, future = weight.unbind(dim=2)
    return torch.stack([torch.zeros_like(past), past, present + future], dim=2)
