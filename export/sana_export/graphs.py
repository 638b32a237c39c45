"""The graphs of a model: every stage variant as a function from named tensors to named tensors, state included.

The names are the ones the server, the manifest and the engines use (ADR 1); each variant has static shapes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sana_export.configs import DiTConfig, ModelConfig
from sana_export.dit import DiT, GDNCache, KVCache, Prompt
from sana_export.pixels import pixels_to_uint8, uint8_to_pixels
from sana_export.rope import RopeTable, rope_rows
from sana_export.text import TextEncoder
from sana_export.vae import VAE, VAEDecoder, VAEEncoder
from sana_runtime.errors import BuildError
from sana_runtime.geometry import Chunk, StreamGeometry
from sana_runtime.prompts import Tokens
from sana_runtime.schedule import chunk_noise
from sana_runtime.state import OUT, as_inputs, check_names, from_outputs

MASKED = -10000.0
"""Added to the score of a key that must not be seen; exact zero weight after softmax in FP32 and BF16."""


@dataclass(frozen=True)
class Graph:
    """One stage variant: `module(*inputs.values())` returns a tuple in the order of `outputs`."""

    stage: str
    variant: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        # The exporter takes two names for one tensor as one input, and wires the graph accordingly.
        if len({tensor.data_ptr() for tensor in self.inputs.values()}) < len(self.inputs):
            raise BuildError(f"{self.stage}/{self.variant}: two example inputs share one tensor")

    @torch.inference_mode()
    def run(self) -> dict[str, Tensor]:
        """Evaluate in PyTorch on the example inputs."""
        return dict(zip(self.outputs, self.module(*self.inputs.values()), strict=True))


class EncoderGraph(nn.Module):
    """frames u8 (1, F, H, W, 3) and caches -> source (1, C, T, h, w) and caches."""

    def __init__(self, encoder: VAEEncoder, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.encoder, self.names = encoder, names

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, caches, strict=True)) or None
        latent, written = self.encoder(uint8_to_pixels(frames), state)
        return latent, *written.values()


class DecoderGraph(nn.Module):
    """latent (1, C, T, h, w) and caches -> edited u8 (1, F, H, W, 3) and caches."""

    def __init__(self, decoder: VAEDecoder, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.decoder, self.names = decoder, names

    def forward(self, latent: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(self.names, caches, strict=True)) or None
        video, written = self.decoder(latent, state)
        return pixels_to_uint8(video), *written.values()


class PromptGraph(nn.Module):
    """text (1, L, D) and text_mask (1, L) -> every block's cross-attention keys and values, and the key bias."""

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, text: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return flatten_prompt(self.dit.prompt(text, mask))


class FirstGraph(nn.Module):
    """One DiT evaluation of chunk 0, which has no past."""

    def __init__(self, dit: DiT, geometry: StreamGeometry) -> None:
        super().__init__()
        self.dit = dit
        frames = range(geometry.first_latents)
        cos, sin = rope_rows(dit.config.head_dim, frames, geometry.latent_height, geometry.latent_width)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, latent: Tensor, source: Tensor, timestep: Tensor, *prompt: Tensor) -> tuple[Tensor, ...]:
        velocity, caches = self.dit(latent, source, timestep, as_prompt(prompt), (self.cos, self.sin), None)
        return velocity, *(tensor for cache in caches for tensor in cache_tensors(cache))


class SteadyGraph(nn.Module):
    """One DiT evaluation of any later chunk: sink and recent chunks in fixed slots, unfilled ones masked."""

    def __init__(self, dit: DiT, geometry: StreamGeometry) -> None:
        super().__init__()
        self.dit, self.geometry = dit, geometry
        config = dit.config
        self.rope = RopeTable(config.head_dim, config.max_frames, geometry.latent_height, geometry.latent_width)

    def forward(
        self,
        latent: Tensor,
        source: Tensor,
        timestep: Tensor,
        frame_start: Tensor,
        recent_valid: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        split = 2 * self.dit.config.depth + 1
        past, recent = self._past(iter(rest[split:]))
        rows = self.rope(frame_start, self.geometry.steady_latents)
        bias = self._window_bias(recent_valid)
        velocity, caches = self.dit(latent, source, timestep, as_prompt(rest[:split]), rows, past, bias)
        return velocity, *(tensor for i, cache in enumerate(caches) for tensor in self._written(cache, recent.get(i)))

    def _past(self, tensors: Iterator[Tensor]) -> tuple[list[GDNCache | KVCache], dict[int, KVCache]]:
        past: list[GDNCache | KVCache] = []
        recent = {}
        for block in range(self.dit.config.depth):
            if block not in self.dit.config.softmax_blocks:
                past.append(GDNCache(next(tensors), next(tensors), next(tensors)))
                continue
            sink_k, sink_v, recent_k, recent_v, tconv = (next(tensors) for _ in range(5))
            recent[block] = KVCache(recent_k, recent_v, tconv)
            past.append(KVCache(torch.cat([sink_k, recent_k], 2), torch.cat([sink_v, recent_v], 2), tconv))
        return past, recent

    def _window_bias(self, recent_valid: Tensor) -> Tensor:
        tokens = self.geometry.tokens_per_frame
        recent = (1 - recent_valid).repeat_interleave(self.geometry.steady_latents * tokens, dim=1) * MASKED
        sink = recent_valid.new_zeros(recent_valid.shape[0], self.geometry.first_latents * tokens)
        return torch.cat([sink, recent], 1)[:, None, None]

    def _written(self, cache: GDNCache | KVCache, recent: KVCache | None) -> tuple[Tensor, ...]:
        if recent is None or isinstance(cache, GDNCache):
            return cache_tensors(cache)
        tokens = cache.k.shape[2]
        shifted = (torch.cat([old[:, :, tokens:], new], 2) for old, new in ((recent.k, cache.k), (recent.v, cache.v)))
        return *shifted, cache.tconv


def flatten_prompt(prompt: Prompt) -> tuple[Tensor, ...]:
    return *(tensor for pair in zip(prompt.k, prompt.v, strict=True) for tensor in pair), prompt.bias


def as_prompt(tensors: Sequence[Tensor]) -> Prompt:
    return Prompt(tuple(tensors[:-1:2]), tuple(tensors[1:-1:2]), tensors[-1])


def cache_tensors(cache: GDNCache | KVCache) -> tuple[Tensor, ...]:
    if isinstance(cache, GDNCache):
        return cache.state_kv, cache.state_z, cache.tconv
    return cache.k, cache.v, cache.tconv


def text_graph(encoder: TextEncoder, tokens: Tokens) -> Graph:
    """The text encoder on example tokens."""
    inputs = dict(zip(("input_ids", "attention_mask"), map(torch.from_numpy, tokens), strict=True))
    return Graph("text_encoder", "prompt", encoder, inputs, ("text", "text_mask"))


def vae_graphs(vae: VAE, geometry: StreamGeometry) -> Iterator[Graph]:
    """Encoder and decoder, first and steady chunk; the steady examples continue from the first chunk's state."""
    chunks = geometry.chunk(0), geometry.chunk(1)
    frames = [example_frames(geometry, chunk) for chunk in chunks]
    latents = [example_latent(geometry, chunk) for chunk in chunks]
    with torch.inference_mode():
        _, encoder_state = vae.encoder(uint8_to_pixels(frames[0]), None)
        _, decoder_state = vae.decoder(latents[0], None)
    yield from _chunk_graphs("vae_encoder", EncoderGraph, vae.encoder, ("frames", "source"), frames, encoder_state)
    yield from _chunk_graphs("vae_decoder", DecoderGraph, vae.decoder, ("latent", "edited"), latents, decoder_state)


def _chunk_graphs(
    stage: str,
    wrapper: Callable[..., nn.Module],
    part: nn.Module,
    names: tuple[str, str],
    examples: Sequence[Tensor],
    state: dict[str, Tensor],
) -> Iterator[Graph]:
    check_names(state)
    outputs = (names[1], *(name + OUT for name in state))
    yield Graph(stage, "first", wrapper(part).eval(), {names[0]: examples[0]}, outputs)
    yield Graph(
        stage, "steady", wrapper(part, tuple(state)).eval(), {names[0]: examples[1], **as_inputs(state)}, outputs
    )


def denoiser_graphs(dit: DiT, model: ModelConfig, text: Tensor, mask: Tensor) -> Iterator[Graph]:
    """Prompt projection, first and steady DiT evaluation; `text` (1, L, D) and `mask` (1, L) are an example prompt."""
    config, geometry = model.dit, model.geometry
    prompt = Graph("denoiser", "prompt", PromptGraph(dit), {"text": text, "text_mask": mask}, prompt_outputs(config))
    yield prompt
    projected = prompt.run()
    sink = state_names(config, ("sink",))
    inputs = {**_denoise_inputs(geometry, geometry.chunk(0)), **projected}
    first = Graph("denoiser", "first", FirstGraph(dit, geometry).eval(), inputs, _velocity_and(sink))
    yield first
    recent = state_names(config, ("recent",))
    inputs = {**_steady_inputs(model), **projected, **as_inputs(_steady_state(model, from_outputs(first.run())))}
    check_names(state_names(config, ("sink", "recent")))
    yield Graph("denoiser", "steady", SteadyGraph(dit, geometry).eval(), inputs, _velocity_and(recent))


def prompt_outputs(config: DiTConfig) -> tuple[str, ...]:
    """Names of what the prompt variant writes and the other two read."""
    return *(f"block{i:02d}.text_{kind}" for i in range(config.depth) for kind in "kv"), "text_bias"


def state_names(config: DiTConfig, slots: Sequence[str]) -> list[str]:
    """Names of the DiT state in block order; `slots` are the window slots of a softmax block, sink or recent."""
    names = []
    for i in range(config.depth):
        window = [f"{slot}_{kind}" for slot in slots for kind in "kv"]
        kinds = window if i in config.softmax_blocks else ["state_kv", "state_z"]
        names += [f"block{i:02d}.{kind}" for kind in (*kinds, "tconv")]
    return names


def _velocity_and(state: list[str]) -> tuple[str, ...]:
    return "velocity", *(name + OUT for name in state)


def _denoise_inputs(geometry: StreamGeometry, chunk: Chunk) -> dict[str, Tensor]:
    latent, source = example_latent(geometry, chunk), example_latent(geometry, chunk, seed=1)
    return {"latent": latent, "source": source, "timestep": torch.tensor([743.0])}


def _steady_inputs(model: ModelConfig) -> dict[str, Tensor]:
    chunk = model.geometry.chunk(model.stream.window)
    return {
        **_denoise_inputs(model.geometry, chunk),
        "frame_start": torch.tensor([chunk.start]),
        "recent_valid": torch.ones(1, model.stream.window - 1),
    }


def _steady_state(model: ModelConfig, written: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a later chunk reads: the first chunk's state, and recent slots that hold made-up chunks."""
    geometry, heads = model.geometry, model.dit.heads
    tokens = (model.stream.window - 1) * geometry.steady_latents * geometry.tokens_per_frame
    names = state_names(model.dit, ("sink", "recent"))
    generator = torch.Generator().manual_seed(0)
    filled = {name: torch.randn(1, heads, tokens, model.dit.head_dim, generator=generator) for name in names}
    return {name: written.get(name, filled[name]) for name in names}


def example_latent(geometry: StreamGeometry, chunk: Chunk, seed: int = 0) -> Tensor:
    return torch.from_numpy(chunk_noise(seed, chunk.index, geometry.latent_shape(chunk)))


def example_frames(geometry: StreamGeometry, chunk: Chunk) -> Tensor:
    """A moving colour gradient, u8 (1, F, H, W, 3): smooth like video, and different in every frame."""
    t, y, x = torch.meshgrid(
        torch.arange(chunk.frames), torch.arange(geometry.height), torch.arange(geometry.width), indexing="ij"
    )
    return torch.stack([(x + 3 * t) % 256, (y + 2 * t) % 256, (x + y + t) % 256], -1).to(torch.uint8)[None]
