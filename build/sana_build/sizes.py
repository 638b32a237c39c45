"""How large the engines of a model will be, from its configuration alone: no weights and no torch needed."""

from collections.abc import Iterator

from sana_export.configs import DOWN_STRIDES, ModelConfig, TextConfig, VAEConfig
from sana_quant.cost import weight_bytes
from sana_quant.policy import PRECISIONS, Policy
from sana_quant.work import ChunkShape, transformer_work

Convolution = tuple[int, int]
"""Channels in and out of a 3x3x3 convolution."""

GEMMA_2_2B = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
}
"""The encoder of the released models, used where a configuration leaves it to the checkpoint."""


def engine_bytes(model: ModelConfig, policy: Policy) -> dict[tuple[str, str], float]:
    """Bytes of the weights in every engine, by stage and variant; graph and constants add about 1 MB, or 1 %.

    The policy is about the transformer; the other stages run in the precision of its layers outside the groups.
    """
    wide = PRECISIONS[policy.outside].stored / 8
    encoder, decoder = (wide * sum(map(_parameters, part(model.vae))) for part in (_encoder, _decoder))
    work = transformer_work(model.dit, steady_chunk(model))
    prompt = weight_bytes((item for item in work if item.per_prompt), policy)
    chunk = weight_bytes((item for item in work if not item.per_prompt), policy)
    return {
        ("text_encoder", "prompt"): wide * text_parameters(model.text),
        ("vae_encoder", "first"): encoder,
        ("vae_encoder", "steady"): encoder,
        ("denoiser", "prompt"): prompt,
        ("denoiser", "first"): chunk,
        ("denoiser", "steady"): chunk,
        ("vae_decoder", "first"): decoder,
        ("vae_decoder", "steady"): decoder,
    }


def steady_chunk(model: ModelConfig) -> ChunkShape:
    """Every chunk but the first few of a stream: the window is full, the sink being the first chunk (spec 4.4)."""
    geometry = model.geometry
    recent = (model.stream.window - 1) * geometry.steady_latents
    return ChunkShape(geometry.steady_latents, geometry.first_latents + recent, geometry.tokens_per_frame)


def text_parameters(config: TextConfig) -> int:
    """Parameters of the Gemma-2 text encoder, without a head."""
    fields = GEMMA_2_2B | dict(config.gemma or {})
    width, wide = fields["hidden_size"], fields["intermediate_size"]
    heads = 2 * fields["num_attention_heads"] + 2 * fields["num_key_value_heads"]
    layer = width * (heads * fields["head_dim"] + 3 * wide + 4)
    return int((fields["vocab_size"] + 1) * width + fields["num_hidden_layers"] * layer)


def vae_parameters(config: VAEConfig) -> int:
    """Parameters of encoder and decoder, without the latent statistics."""
    return sum(map(_parameters, (*_encoder(config), *_decoder(config))))


def _parameters(convolution: Convolution) -> int:
    inputs, outputs = convolution
    return (27 * inputs + 1) * outputs


def _resnets(width: int, layers: int) -> list[Convolution]:
    return 2 * layers * [(width, width)]


def _volume(kind: str) -> int:
    t, h, w = DOWN_STRIDES[kind]
    return t * h * w


def _encoder(config: VAEConfig) -> Iterator[Convolution]:
    widths = (config.latent_channels, *config.encoder_widths)
    yield 3 * config.patch**2, widths[0]
    stages = zip(widths, widths[1:], config.encoder_layers, config.downsample, strict=False)
    for inputs, outputs, layers, kind in stages:
        yield from _resnets(inputs, layers)
        yield inputs, outputs // _volume(kind)
    yield from _resnets(widths[-1], config.encoder_layers[-1])
    yield widths[-1], config.latent_channels + 1


def _decoder(config: VAEConfig) -> Iterator[Convolution]:
    layers = config.decoder_layers[::-1]
    yield config.latent_channels, config.decoder_widths[-1]
    yield from _resnets(config.decoder_widths[-1], layers[0])
    for width, count, kind in zip(config.decoder_widths[::-1], layers[1:], config.upsample, strict=True):
        yield width, width * _volume(kind) // 2
        yield from _resnets(width // 2, count)
    yield config.decoder_widths[0] // 2, 3 * config.patch**2
