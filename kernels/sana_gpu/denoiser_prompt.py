"""A prompt as every block's cross-attention reads it, computed once (spec 3.4, 3.9)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_gpu.denoiser_layout import Layout
from sana_gpu.dit_blocks import Weights
from sana_gpu.linear import Linear
from sana_kernels.naive_dit import CROSS_EPSILON, rms_norm, to_fp8
from sana_runtime.engine import OneByOne, check_feeds
from sana_runtime.memory import Array, TorchMemory
from sana_runtime.tensors import TensorSpec

CAPTION_EPSILON = 1e-5
PADDING_BIAS = -10000.0


def keys_used(bias: Tensor) -> Tensor:
    """Keys up to the last one that bias (B, L) does not exclude, int32 (B,); all of them if it excludes all."""
    places = torch.arange(1, bias.shape[1] + 1, dtype=torch.int32, device=bias.device)
    used = torch.where(bias > PADDING_BIAS / 2, places, 0).amax(1)
    return torch.where(used > 0, used, bias.shape[1])


class PromptEngine(OneByOne):
    """`text` f32 (1, L, D) and `text_mask` f32 (1, L) to `prompt` u8 (1, size): keys and values of all blocks, a bias.

    The weight of the queries' norm is in the keys, which every query meets and which are computed once.
    """

    def __init__(self, weights: Weights, layout: Layout, memory: TorchMemory) -> None:
        self.memory, self._weights, self._layout = memory, weights, layout
        tokens, width = layout.text
        self.inputs = (
            TensorSpec("text", "float32", (1, tokens, width)),
            TensorSpec("text_mask", "float32", (1, tokens)),
        )
        self._pack = layout.packs["prompt"]
        self.outputs = (self._pack.spec("prompt"),)
        self._fc1, self._fc2 = (Linear.load(weights, f"y_embedder.{name}") for name in ("fc1", "fc2"))
        blocks = [f"blocks.{i}.cross_attn." for i in range(len(layout.gdn))]
        self._products = [Linear.load(weights, path + "kv_linear") for path in blocks]
        self._norms = [weights[path + "k_norm"] for path in blocks]
        self._q_norms = [weights[path + "q_norm"] for path in blocks]

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Raises EngineError naming the tensor that is missing, unknown or misshapen."""
        check_feeds(self.inputs, feeds)
        with self.memory.stream(), self.memory.working():
            text, mask = (self.memory.as_tensor(feeds[spec.name]) for spec in self.inputs)
            prompt = self.memory.empty(self.outputs[0])
            parts = self._pack.unpacked(prompt)
            y = self._embedded(text)
            for i in range(len(self._products)):
                for kind, values in zip("kv", self._block(i, y), strict=True):
                    parts[f"block{i:02d}.text_{kind}"].copy_(values)
            parts["text_bias"].copy_(((1 - mask) * PADDING_BIAS)[:, None, None])
            return {"prompt": prompt}

    def warm(self) -> None:
        """Load what the first prompt would wait for."""
        self.run({spec.name: self.memory.zeros(spec) for spec in self.inputs})

    def _embedded(self, text: Tensor) -> Tensor:
        x = text.to(self._fc1.dtype)
        hidden = F.gelu(self._fc1((x, x)), approximate="tanh")
        y = self._fc2((hidden, hidden))
        return rms_norm(y, self._weights["attention_y_norm.weight"], CAPTION_EPSILON).to(y.dtype)

    def _block(self, block: int, y: Tensor) -> tuple[Tensor, Tensor]:
        product = self._products[block]
        k, v = product((y, y if product.step is None else to_fp8(y, product.step))).chunk(2, dim=-1)
        k = (rms_norm(k, self._norms[block], CROSS_EPSILON) * self._q_norms[block]).to(v.dtype)
        return self._heads(k), self._heads(v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self._layout.heads, -1)).transpose(1, 2)
