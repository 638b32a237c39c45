"""The graphs of a model: every stage variant as a function from named tensors to named tensors, state included.

The names are the ones the server, the manifest and the engines use (ADR 1); each variant has static shapes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sana_export.configs import DiTConfig, ModelConfig
from sana_export.dit import DiT
from sana_export.dtypes import compute_dtype
from sana_export.graph_modules import DecoderGraph, EncoderGraph, FirstGraph, PromptGraph, SteadyGraph
from sana_export.text import TextEncoder
from sana_export.vae import VAE, VAEDecoder, VAEEncoder
from sana_runtime.errors import BuildError
from sana_runtime.geometry import Chunk, StreamGeometry
from sana_runtime.prompts import Tokens
from sana_runtime.schedule import chunk_noise
from sana_runtime.state import OUT, as_inputs, check_names, from_outputs


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

    @torch.no_grad()
    def outline(self) -> dict[str, Tensor]:
        """What `run` returns, in shape and dtype only: the values are arbitrary and nothing is computed."""
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            outputs = self.module(*map(mode.from_tensor, self.inputs.values()))
        return {name: torch.empty(y.shape, dtype=y.dtype) for name, y in zip(self.outputs, outputs, strict=True)}


Evaluate = Callable[[Graph], dict[str, Tensor]]
"""How the examples of a later graph come from an earlier one: computed (`Graph.run`), or in shape alone."""


def text_graph(encoder: TextEncoder, tokens: Tokens) -> Graph:
    """The text encoder on example tokens."""
    inputs = dict(zip(("input_ids", "attention_mask"), map(torch.from_numpy, tokens), strict=True))
    return Graph("text_encoder", "prompt", encoder, inputs, ("text", "text_mask"))


def vae_graphs(vae: VAE, geometry: StreamGeometry, evaluate: Evaluate = Graph.run) -> Iterator[Graph]:
    """Encoder and decoder, first and steady chunk; the steady examples continue from the first chunk's state."""
    chunks = geometry.chunk(0), geometry.chunk(1)
    frames = [{"frames": example_frames(geometry, chunk)} for chunk in chunks]
    latents = [{"latent": example_latent(geometry, chunk)} for chunk in chunks]
    yield from _chunk_graphs("vae_encoder", EncoderGraph, vae.encoder, frames, "source", evaluate)
    yield from _chunk_graphs("vae_decoder", DecoderGraph, vae.decoder, latents, "edited", evaluate)


def _chunk_graphs(
    stage: str,
    wrapper: Callable[..., nn.Module],
    part: VAEEncoder | VAEDecoder,
    examples: Sequence[dict[str, Tensor]],
    output: str,
    evaluate: Evaluate,
) -> Iterator[Graph]:
    names = part.state_names
    check_names(names)
    outputs = output, *(name + OUT for name in names)
    first = Graph(stage, "first", wrapper(part).eval(), examples[0], outputs)
    yield first
    state = from_outputs(evaluate(first))
    yield Graph(stage, "steady", wrapper(part, names).eval(), {**examples[1], **as_inputs(state)}, outputs)


def denoiser_graphs(
    dit: DiT, model: ModelConfig, text: Tensor, mask: Tensor, evaluate: Evaluate = Graph.run
) -> Iterator[Graph]:
    """Prompt projection, first and steady DiT evaluation; `text` (1, L, D) and `mask` (1, L) are an example prompt."""
    config, geometry = model.dit, model.geometry
    prompt = Graph("denoiser", "prompt", PromptGraph(dit), {"text": text, "text_mask": mask}, prompt_outputs(config))
    yield prompt
    projected = evaluate(prompt)
    sink = state_names(config, ("sink",))
    inputs = {**_denoise_inputs(geometry, geometry.chunk(0)), **projected}
    first = Graph("denoiser", "first", FirstGraph(dit, geometry).eval(), inputs, _velocity_and(sink))
    yield first
    recent = state_names(config, ("recent",))
    state = _steady_state(model, from_outputs(evaluate(first)), compute_dtype(dit))
    inputs = {**_steady_inputs(model), **projected, **as_inputs(state)}
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


def _steady_state(model: ModelConfig, written: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What a later chunk reads: the first chunk's state, and recent slots that hold made-up chunks."""
    tokens = (model.stream.window - 1) * model.geometry.steady_latents * model.geometry.tokens_per_frame
    shape = 1, model.dit.heads, tokens, model.dit.head_dim
    generator = torch.Generator().manual_seed(0)
    return {
        name: written[name] if name in written else torch.randn(shape, generator=generator).to(dtype)
        for name in state_names(model.dit, ("sink", "recent"))
    }


def example_latent(geometry: StreamGeometry, chunk: Chunk, seed: int = 0) -> Tensor:
    return torch.from_numpy(chunk_noise(seed, chunk.index, geometry.latent_shape(chunk)))


def example_frames(geometry: StreamGeometry, chunk: Chunk) -> Tensor:
    """A moving colour gradient, u8 (1, F, H, W, 3): smooth like video, and different in every frame."""
    t, y, x = torch.meshgrid(
        torch.arange(chunk.frames), torch.arange(geometry.height), torch.arange(geometry.width), indexing="ij"
    )
    return torch.stack([(x + 3 * t) % 256, (y + 2 * t) % 256, (x + y + t) % 256], -1).to(torch.uint8)[None]
