"""The VAE file: its tensors, the diffusers configuration beside it, and random weights (spec 7.3, 8)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sana_export.configs import VAEConfig
from sana_export.vae import VAE
from sana_export.vae_layers import ResnetBlock, TemporalConv
from sana_runtime.errors import CheckpointError

STATISTICS = ("latents_mean", "latents_std")

FIELDS = {
    "latent_channels": "latent_channels",
    "patch": "patch_size",
    "encoder_widths": "block_out_channels",
    "encoder_layers": "layers_per_block",
    "downsample": "downsample_type",
    "decoder_widths": "decoder_block_out_channels",
    "decoder_layers": "decoder_layers_per_block",
    "upsample": "upsample_type",
    "decoder_causal": "decoder_causal",
}
"""Our field of VAEConfig to the name diffusers writes."""

FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "patch_size_t": 1,
    "scaling_factor": 1.0,
    "timestep_conditioning": False,
    "encoder_causal": True,
    "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect",
}
"""What diffusers can vary and our VAE cannot."""

FIXED_PER_BLOCK = {
    "spatio_temporal_scaling": (True, "downsample"),
    "decoder_spatio_temporal_scaling": (True, "upsample"),
    "decoder_inject_noise": (False, "decoder_layers"),
    "upsample_residual": (True, "upsample"),
    "upsample_factor": (2, "upsample"),
}
"""The same for lists: the value of every entry, and our field with as many entries."""


def convolutions(module: VAE) -> dict[str, TemporalConv]:
    """Every convolution by its released path, which is its module path and a trailing `.conv`."""
    return {f"{name}.conv": conv for name, conv in module.named_modules() if isinstance(conv, TemporalConv)}


def released_shapes(config: VAEConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of every tensor in a VAE file of this configuration."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in to_released(VAE(config)).items()}


def to_released(module: VAE) -> dict[str, Tensor]:
    """The tensors of the VAE file: kernels (O, I, 3, 3, 3) and one copy of the latent statistics."""
    tensors = {name: getattr(module.encoder, name) for name in STATISTICS}
    for name, conv in convolutions(module).items():
        tensors[f"{name}.weight"] = conv.weight.data.unflatten(1, (3, -1)).transpose(1, 2).contiguous()
        tensors[f"{name}.bias"] = conv.bias.data
    return tensors


def from_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `VAE` from the tensors of a VAE file."""
    state = {f"{part}.{name}": tensors[name] for part in ("encoder", "decoder") for name in STATISTICS}
    for key, value in tensors.items():
        path, _, kind = key.rpartition(".conv.")
        if path:
            state[f"{path}.{kind}"] = value.transpose(1, 2).flatten(1, 2) if value.ndim == 5 else value
    return state


def config_to_json(config: VAEConfig) -> dict[str, Any]:
    """`config.json` of a VAE folder."""
    lists = {name: [value] * len(getattr(config, field)) for name, (value, field) in FIXED_PER_BLOCK.items()}
    own = {name: getattr(config, field) for field, name in FIELDS.items()}
    return {"_class_name": "AutoencoderKLLTX2Video", **FIXED, **lists, **own}


def config_from_json(where: str, raw: Mapping[str, Any]) -> VAEConfig:
    """VAEConfig from `config.json` of a VAE folder; what the file leaves out has the released value.

    Raises CheckpointError naming the fields that ask for a network we do not have.
    """
    strange = {name for name, value in FIXED.items() if raw.get(name, value) != value}
    strange |= {name for name, (value, _) in FIXED_PER_BLOCK.items() if not _all_equal(raw.get(name, value), value)}
    if strange:
        named = ", ".join(f"{name} = {raw[name]}" for name in sorted(strange))
        raise CheckpointError(f"{where} describes a VAE of another kind ({named}): LTX-2's is needed")
    return VAEConfig(**{ours: _frozen(raw[theirs]) for ours, theirs in FIELDS.items() if theirs in raw})


def _all_equal(value: Any, expected: Any) -> bool:
    return all(item == expected for item in value) if isinstance(value, list | tuple) else value == expected


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def fill_vae(module: VAE, seed: int) -> None:
    """Seeded random weights: unit-scale normalised latents, and pixels that stay in range for unit-normal latents."""
    generator = torch.Generator().manual_seed(seed)
    quiet = {id(block.conv2) for block in module.modules() if isinstance(block, ResnetBlock)}
    with torch.no_grad():
        for conv in convolutions(module).values():
            gain = 0.3 if id(conv) in quiet else 1.0
            conv.weight.normal_(0.0, gain * conv.weight[0].numel() ** -0.5, generator=generator)
            conv.bias.normal_(0.0, 0.02, generator=generator)
        mean = 0.1 * torch.randn(module.config.latent_channels, generator=generator)
        std = 0.4 + 0.4 * torch.rand(module.config.latent_channels, generator=generator)
        for part in (module.encoder, module.decoder):
            part.latents_mean.copy_(mean)
            part.latents_std.copy_(std)
