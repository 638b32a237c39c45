"""What one evaluation of the transformer on one chunk computes, layer by layer, from its sizes alone (spec 3, 10)."""

import math
from dataclasses import dataclass
from typing import Protocol

from sana_quant.groups import GROUPS

PAD = 128
TIME_WIDTH = 256
GROUP_OF = {module: group for group, module in GROUPS.items()}


class Transformer(Protocol):
    """The sizes of a transformer, as sana_export's DiTConfig has them."""

    @property
    def depth(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def ffn_width(self) -> int: ...
    @property
    def softmax_blocks(self) -> tuple[int, ...]: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def source_channels(self) -> int: ...
    @property
    def caption_width(self) -> int: ...
    @property
    def text_tokens(self) -> int: ...


@dataclass(frozen=True)
class ChunkShape:
    """One chunk as the transformer sees it: its latent frames, and how many earlier ones the window keeps."""

    latents: int
    past_latents: int
    tokens_per_frame: int

    @property
    def tokens(self) -> int:
        return self.latents * self.tokens_per_frame

    @property
    def past_tokens(self) -> int:
        return self.past_latents * self.tokens_per_frame


@dataclass(frozen=True)
class Work:
    """One layer or attention core. `weights` takes the precision of its group, `others` (biases, norms) never does.

    `flops` counts two per multiply-add; `reads` and `writes` count activation elements; `padding` is the factor by
    which the width of the output grows when it is padded to a multiple of 128, the width of a tensor-core tile.
    `per_prompt` work is not in the engine that runs for every chunk: its result is kept while the prompt stays.
    """

    name: str
    flops: float
    reads: int
    writes: int
    weights: int = 0
    others: int = 0
    padding: float = 1.0
    group: str | None = None
    block: int | None = None
    per_prompt: bool = False

    @property
    def parameters(self) -> int:
        return self.weights + self.others


def transformer_work(dit: Transformer, chunk: ChunkShape) -> list[Work]:
    """Everything that one evaluation of `dit` on `chunk` computes."""
    blocks = [work for block in range(dit.depth) for work in _block(dit, chunk, block)]
    return [*_embedders(dit, chunk), *blocks, *_final(dit, chunk)]


def linear(
    name: str,
    rows: int,
    inputs: int,
    outputs: int,
    biased: bool = True,
    block: int | None = None,
    per_prompt: bool = False,
) -> Work:
    """A matrix product (rows, inputs) x (inputs, outputs)."""
    return Work(
        name=name,
        flops=2 * rows * inputs * outputs,
        reads=rows * inputs,
        writes=rows * outputs,
        weights=inputs * outputs,
        others=outputs if biased else 0,
        padding=math.ceil(outputs / PAD) * PAD / outputs,
        group=GROUP_OF.get(name),
        block=block,
        per_prompt=per_prompt,
    )


def _embedders(dit: Transformer, chunk: ChunkShape) -> list[Work]:
    width, text = dit.hidden, dit.text_tokens
    return [
        linear("x_embedder", chunk.tokens, dit.latent_channels + dit.source_channels, width),
        linear("t_embedder.mlp.0", 1, TIME_WIDTH, width),
        linear("t_embedder.mlp.2", 1, width, width),
        linear("t_block.1", 1, width, 6 * width),
        linear("y_embedder.fc1", text, dit.caption_width, width, per_prompt=True),
        linear("y_embedder.fc2", text, width, width, per_prompt=True),
        Work("attention_y_norm", 0, text * width, text * width, others=width, per_prompt=True),
    ]


def _final(dit: Transformer, chunk: ChunkShape) -> list[Work]:
    elements = chunk.tokens * dit.hidden
    return [
        Work("final_layer.norm", 0, elements, elements, others=2 * dit.hidden),
        linear("final_layer.linear", chunk.tokens, dit.hidden, dit.latent_channels),
    ]


def _block(dit: Transformer, chunk: ChunkShape, block: int) -> list[Work]:
    tokens, width, wide = chunk.tokens, dit.hidden, dit.ffn_width
    softmax = block in dit.softmax_blocks
    gates = [] if softmax else _gates(dit, chunk, block)
    return [
        *(linear(f"attn.{name}", tokens, width, width, False, block) for name in ("q", "k", "v")),
        linear("attn.output_gate", tokens, width, width, block=block),
        *gates,
        _softmax_core(dit, chunk, block) if softmax else _gdn_core(dit, chunk, block),
        linear("attn.proj", tokens, width, width, block=block),
        linear("cross_attn.q_linear", tokens, width, width, block=block),
        linear("cross_attn.kv_linear", dit.text_tokens, width, 2 * width, block=block, per_prompt=True),
        _attention("cross_attn", tokens, dit.text_tokens, width, block),
        linear("cross_attn.proj", tokens, width, width, block=block),
        linear("mlp.inverted_conv", tokens, width, 2 * wide, block=block),
        _depth_conv(tokens, wide, block),
        linear("mlp.point_conv", tokens, wide, width, False, block),
        linear("mlp.t_conv", tokens, 3 * width, width, False, block),
        _elementwise(tokens, width, block),
    ]


def _gates(dit: Transformer, chunk: ChunkShape, block: int) -> list[Work]:
    return [
        linear("attn.beta_proj", chunk.tokens, dit.hidden, dit.heads, block=block),
        linear("attn.gate_proj", chunk.latents, dit.hidden, dit.heads, block=block),
    ]


def _gdn_core(dit: Transformer, chunk: ChunkShape, block: int) -> Work:
    """Per head: four products of tokens with d x d, two d x d scans over frames, and the vector path of z.

    It reads q, k and v once and q again for the readout, and writes the result.
    """
    d, tokens, frames = dit.head_dim, chunk.tokens, chunk.latents
    multiplies = 4 * d**2 * tokens + 2 * d**3 * frames + 2 * d**2 * frames + 2 * d * tokens
    elements = tokens * dit.hidden
    return Work("attn", 2 * multiplies * dit.heads, 4 * elements, elements, others=2 * dit.heads, block=block)


def _softmax_core(dit: Transformer, chunk: ChunkShape, block: int) -> Work:
    return _attention("attn", chunk.tokens, chunk.past_tokens + chunk.tokens, dit.hidden, block)


def _attention(name: str, queries: int, keys: int, width: int, block: int) -> Work:
    return Work(name, 4 * queries * keys * width, (queries + 2 * keys) * width, queries * width, block=block)


def _depth_conv(tokens: int, wide: int, block: int) -> Work:
    """Nine taps per channel; the gate that halves the channels is taken as fused into it."""
    channels = 2 * wide
    flops = 2 * 9 * channels * tokens
    return Work("mlp.depth_conv", flops, tokens * channels, tokens * wide, 9 * channels, channels, block=block)


def _elementwise(tokens: int, width: int, block: int) -> Work:
    """Norms, modulation, residuals and the output gate, each fused with a neighbour as far as possible.

    Two norms read and write the stream; three residual sums and the gate read one operand more than their neighbour.
    """
    elements = tokens * width
    return Work("elementwise", 0, 6 * elements, 2 * elements, others=10 * width, block=block)
