"""One frozen configuration per named model (spec section 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sana_runtime.errors import ConfigError
from sana_runtime.geometry import StreamGeometry


@dataclass(frozen=True)
class DiTConfig:
    """The hybrid transformer (spec 1.1, 2). `streaming` selects the class whose softmax blocks store 3-tap q/k."""

    depth: int = 20
    hidden: int = 2240
    heads: int = 20
    latent_channels: int = 128
    source_channels: int = 128
    mlp_ratio: float = 3.0
    caption_width: int = 2304
    text_tokens: int = 300
    softmax_ratio: float = 0.25
    streaming: bool = True
    max_frames: int = 1024

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.head_dim % 2:
            raise ConfigError(f"hidden width {self.hidden} does not split into {self.heads} heads of even width")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def ffn_width(self) -> int:
        return int(self.hidden * self.mlp_ratio)

    @property
    def softmax_blocks(self) -> tuple[int, ...]:
        """Indices of the softmax blocks, spread evenly, the last block among them; none at a ratio of 0 (spec 2)."""
        count = max(1, int(self.depth * self.softmax_ratio)) if self.softmax_ratio else 0
        return tuple(int((i + 1) * (self.depth / count)) - 1 for i in range(count))


DOWN_STRIDES = {"spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}


@dataclass(frozen=True)
class VAEConfig:
    """The LTX-2 video VAE (spec 7.3); `decoder_causal` selects left-only temporal padding in the decoder (7.6)."""

    latent_channels: int = 128
    patch: int = 4
    encoder_widths: tuple[int, ...] = (256, 512, 1024, 2048)
    encoder_layers: tuple[int, ...] = (4, 6, 6, 2, 2)
    downsample: tuple[str, ...] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    decoder_widths: tuple[int, ...] = (256, 512, 1024)
    decoder_layers: tuple[int, ...] = (5, 5, 5, 5)
    upsample: tuple[str, ...] = ("spatiotemporal", "spatiotemporal", "spatiotemporal")
    decoder_causal: bool = True

    @property
    def spatial_ratio(self) -> int:
        return self.patch * 2 ** sum(kind != "temporal" for kind in self.downsample)

    @property
    def temporal_ratio(self) -> int:
        return 2 ** sum(kind != "spatial" for kind in self.downsample)


@dataclass(frozen=True)
class TextConfig:
    """The text encoder: fields of transformers' Gemma2Config, or None for what the checkpoint says."""

    gemma: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StreamConfig:
    """Sampler and cache window (spec 1.2, 4.4); `window` counts chunks and includes the sink."""

    steps: int = 4
    window: int = 2
    sink: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A named model: its parts, its frame size, and where its released weights are."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig = field(default_factory=TextConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    height: int = 704
    width: int = 1280
    checkpoint: str = "Efficient-Large-Model/SANA-Streaming"
    vae_repository: str = "Efficient-Large-Model/SANA-Streaming"
    text_repository: str = "Efficient-Large-Model/gemma-2-2b-it"

    @property
    def geometry(self) -> StreamGeometry:
        return StreamGeometry(
            height=self.height,
            width=self.width,
            latent_channels=self.dit.latent_channels,
            spatial_ratio=self.vae.spatial_ratio,
            temporal_ratio=self.vae.temporal_ratio,
            max_latents=self.dit.max_frames,
        )


SANA_STREAMING = ModelConfig("sana-streaming", DiTConfig(), VAEConfig())

SANA_STREAMING_BIDIRECTIONAL = ModelConfig(
    "sana-streaming-bidirectional",
    DiTConfig(streaming=False),
    VAEConfig(decoder_causal=False),
    checkpoint="Efficient-Large-Model/SANA-Streaming_bidirectional",
    vae_repository="Lightricks/LTX-2",
)

TINY = ModelConfig(
    "tiny",
    DiTConfig(
        depth=8,
        hidden=192,
        heads=6,
        latent_channels=96,
        source_channels=96,
        mlp_ratio=2.0,
        caption_width=128,
        text_tokens=128,
    ),
    # Space is folded last in the encoder and unfolded first in the decoder: wherever a frame is small, it needs more
    # channels than the latent has, or detail that does not move is lost.
    VAEConfig(
        latent_channels=96,
        encoder_widths=(64, 128, 256),
        encoder_layers=(0, 0, 1, 0),
        downsample=("temporal", "spatiotemporal", "spatiotemporal"),
        decoder_widths=(32, 64, 128),
        decoder_layers=(4, 3, 2, 0),
        upsample=("spatiotemporal", "spatiotemporal", "temporal"),
    ),
    TextConfig(
        {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "intermediate_size": 256,
            "vocab_size": 1024,
            "query_pre_attn_scalar": 32,
            "sliding_window": 512,
        }
    ),
    height=144,
    width=256,
    checkpoint="shipped:tiny",
)

MODELS = {model.name: model for model in (SANA_STREAMING, SANA_STREAMING_BIDIRECTIONAL, TINY)}
