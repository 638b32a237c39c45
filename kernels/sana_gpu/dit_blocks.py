"""The transformer's blocks on fused steps: between two products there is one pass over memory (spec 3.5 to 3.10)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sana_gpu.attention import Attend
from sana_gpu.dit_weights import WIDE
from sana_gpu.linear import Linear
from sana_kernels.dit_launcher import Both
from sana_kernels.dit_ops import cross_attention, depthwise_glu, gate_rows, residual_norm, stack_frames, write_window
from sana_kernels.ops import gdn_layer_core

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Past:
    """What one block reads beside its tokens; tensors that a first chunk has none of are None.

    text_k, text_v (B, h, L, d); tail (B, S, C), the temporal layer's input of the frame left of the chunk. GDN:
    state_kv, state_z. Softmax: keys, values (B, W, C), which take the chunk's own from row `start` on.
    """

    text_k: Tensor
    text_v: Tensor
    tail: Tensor | None = None
    state_kv: Tensor | None = None
    state_z: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    start: int = 0


@dataclass(frozen=True)
class Scene:
    """What all blocks of a chunk read: rope (B, N, d), the prompt's bias (B, L) and how many of its keys are in use,
    int32 (B,); frames of height x width tokens.
    """

    rope: Tensor
    bias: Tensor
    used: Tensor
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class Modulation:
    """Vectors (C,) of one block at one timestep."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    ffn_shift: Tensor
    ffn_scale: Tensor
    ffn_gate: Tensor


@dataclass(frozen=True)
class Form:
    """In which forms products read one tensor."""

    plain: bool
    step: float | None

    @classmethod
    def of(cls, *readers: Linear) -> "Form":
        return cls(any(reader.plain for reader in readers), next((r.step for r in readers if r.step), None))


@dataclass(frozen=True)
class Norm:
    """The modulated norm in front of a product: its vectors (C,), and how the product reads it."""

    shift: Tensor
    scale: Tensor
    form: Form


def normed(x: Tensor, norm: Norm) -> Both:
    """The norm alone."""
    _, plain, fp8 = residual_norm(
        x, None, None, None, None, norm.shift, norm.scale, 1, False, norm.form.plain, norm.form.step
    )
    return plain, fp8


def newest(x: Tensor, last: int) -> Tensor:
    """The last tokens of x (B, N, C)."""
    return x if last == x.shape[1] else x[:, -last:].contiguous()


class Projections:
    """The self-attention's products of its input, as many as there are precisions among them."""

    def __init__(self, weights: Weights, path: str, heads: int) -> None:
        suffix = ".weight"
        names = [name[len(path) : -len(suffix)] for name in weights if name.startswith(path) and name.endswith(suffix)]
        self._groups = [name.split("+") for name in names if name.split("+")[0] in WIDE]
        self._linears = [Linear.load(weights, path + "+".join(group)) for group in self._groups]
        self._heads = heads
        self.form = Form.of(*self._linears)

    def __call__(self, x: Both) -> dict[str, Tensor]:
        """Every projection by name, (B, N, C) or (B, N, h), as columns of one of the products."""
        found: dict[str, Tensor] = {}
        for group, linear in zip(self._groups, self._linears, strict=True):
            product = linear(x)
            hidden = linear.weight.shape[1]
            widths = [self._heads if name in ("beta_proj", "gate_proj") else hidden for name in group]
            columns = product.split([*widths, product.shape[-1] - sum(widths)], dim=-1)
            found |= dict(zip(group, columns, strict=False))
        return found


class Attention(Protocol):
    """A self-attention between its projections and its output projection."""

    projections: Projections

    def __call__(self, h: Both, past: Past, scene: Scene, reader: Linear, last: int) -> tuple[Both, dict[str, Tensor]]:
        """From the block's normed input (B, N, C) to what the output projection reads, and the state that it leaves.

        Of its result, the `last` tokens are wanted.
        """
        ...


class GDN:
    """Linear attention with a carried state (spec 3.7)."""

    def __init__(self, weights: Weights, path: str) -> None:
        self._a_log, self._dt_bias = weights[path + "a_log"], weights[path + "dt_bias"]
        self._q_norm, self._k_norm = weights[path + "q_norm"], weights[path + "k_norm"]
        self.projections = Projections(weights, path, len(self._a_log))

    def __call__(self, h: Both, past: Past, scene: Scene, reader: Linear, last: int) -> tuple[Both, dict[str, Tensor]]:
        p = self.projections(h)
        rope = scene.rope[0] if len(scene.rope) == 1 else scene.rope
        precision = "bf16" if p["q"].dtype == torch.bfloat16 else "fp32"
        out, kv, z = gdn_layer_core(
            p["q"], p["k"], p["v"], p["output_gate"], p["beta_proj"], p["gate_proj"], self._q_norm, self._k_norm,
            self._dt_bias, self._a_log, rope, past.state_kv, past.state_z, scene.frames, precision,
            reader.factor,
        )  # fmt: skip
        wanted = newest(out, last)
        return (wanted, wanted), {"state_kv": kv, "state_z": z}


class Softmax:
    """Attention of the chunk over the window of past chunks and itself (spec 3.8)."""

    def __init__(self, weights: Weights, path: str, head: int, attend: Attend) -> None:
        self._q_norm, self._k_norm = weights[path + "q_norm"], weights[path + "k_norm"]
        self._head, self._attend = head, attend
        self.projections = Projections(weights, path, len(self._q_norm) // head)

    def __call__(self, h: Both, past: Past, scene: Scene, reader: Linear, last: int) -> tuple[Both, dict[str, Tensor]]:
        assert past.keys is not None
        assert past.values is not None
        p = self.projections(h)
        q = write_window(
            p["q"], p["k"], p["v"], self._q_norm, self._k_norm, scene.rope, past.keys, past.values, past.start
        )
        end = past.start + q.shape[1]
        wanted = q[:, -last:], past.keys[:, :end], past.values[:, :end]
        attended, lse = self._attend(*(self._heads(x) for x in wanted))
        merged = attended.transpose(1, 2).flatten(2).contiguous()
        return gate_rows(merged, newest(p["output_gate"], last), reader.plain, reader.step, lse), {}

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self._head)).transpose(1, 2)


def add_product(to: Tensor, x: Tensor, weight: Tensor) -> None:
    """to (B, N, M) += x (B, N, K) @ weight.T, in place."""
    if len(to) == 1:
        torch.addmm(to[0], x[0], weight.T, out=to[0])
    else:
        torch.baddbmm(to, x, weight.T.expand(len(to), -1, -1), out=to)


class Temporal:
    """Three taps over time (spec 3.10)."""

    def __init__(self, weights: Weights, path: str) -> None:
        self._linear = Linear.load(weights, path)

    def __call__(self, point: Tensor, before: Tensor | None, frames: int) -> tuple[Tensor, Tensor | None]:
        """What the taps add to point (B, N, C), and what is left to add to its first frame (B, S, C).

        `before` is what `left` made of the frame left of the chunk. Products of single frames need no copies and leave
        out frames that do not exist. FP8 products cannot be added up: there frames are stacked as they are narrowed.
        """
        if self._linear.step is not None:
            stacked = stack_frames(point, before, frames, self._linear.step)
            return self._linear((point, stacked)), None
        left, own, right = self._linear.weight.chunk(3, dim=1)
        tokens = point.shape[1] // frames
        mixed = F.linear(point, own)
        add_product(mixed[:, tokens:], point[:, :-tokens], left)
        add_product(mixed[:, :-tokens], point[:, tokens:], right)
        return mixed, before

    def left(self, tail: Tensor) -> Tensor:
        """What all passes of a chunk read of the frame left of it (B, S, C): what it adds, if that can be added."""
        return F.linear(tail, self._linear.weight[:, : tail.shape[-1]]) if self._linear.plain else tail


class Block:
    """Self-attention, cross-attention and feed-forward on tokens (B, N, C)."""

    def __init__(self, weights: Weights, path: str, head: int, attend: Attend) -> None:
        is_gdn = f"{path}.attn.a_log" in weights
        self.attention: Attention = (
            GDN(weights, f"{path}.attn.") if is_gdn else Softmax(weights, f"{path}.attn.", head, attend)
        )
        names = "attn.proj", "cross_attn.q_linear", "cross_attn.proj", "mlp.inverted_conv", "mlp.point_conv"
        self.linears = [Linear.load(weights, f"{path}.{name}") for name in names]
        self.temporal = Temporal(weights, f"{path}.mlp.t_conv")
        self._stencil = weights[f"{path}.mlp.depth_conv.weight"], weights[f"{path}.mlp.depth_conv.bias"]
        self.hidden = self.linears[0].weight.shape[0]

    @property
    def form(self) -> Form:
        """How it reads its normed input."""
        return self.attention.projections.form

    def __call__(
        self, x: Tensor, h: Both, m: Modulation, past: Past, scene: Scene, following: Norm
    ) -> tuple[Tensor, Both, dict[str, Tensor]]:
        """x (B, N, C) and h, the norm of x; returns both for the `following` norm, and the state that it leaves.

        The past's tail is here what Temporal.left made of it.
        """
        tokens = scene.height * scene.width
        attended, state = self.attention(h, past, scene, self.linears[0], x.shape[1])
        x, p = self._mix(x, attended, m, past, scene)
        state["tconv"] = p[:, -tokens:]
        x, *after = residual_norm(
            x, p, *self.temporal(p, past.tail, scene.frames), m.ffn_gate, following.shift, following.scale,
            scene.frames, True, following.form.plain, following.form.step,
        )  # fmt: skip
        return x, (after[0], after[1]), state

    def leave(self, x: Tensor, h: Both, m: Modulation, past: Past, scene: Scene) -> dict[str, Tensor]:
        """The state alone, for which only the last frame's tokens go further than the self-attention."""
        tokens = scene.height * scene.width
        attended, state = self.attention(h, past, scene, self.linears[0], tokens)
        _, p = self._mix(newest(x, tokens), attended, m, past, scene)
        return state | {"tconv": p}

    def _mix(self, x: Tensor, attended: Both, m: Modulation, past: Past, scene: Scene) -> tuple[Tensor, Tensor]:
        """From the attention's result to the residual stream and the temporal layer's input, both (B, N, C)."""
        out, query, cross_out, wide, point = self.linears
        x, _, narrow = residual_norm(x, out(attended), None, None, m.gate, None, None, 1, True, False, query.step)
        q = query((x, narrow))
        crossed = cross_out(cross_attention(q, past.text_k, past.text_v, scene.bias, scene.used, cross_out.step))
        x, *after = residual_norm(
            x, crossed, None, None, None, m.ffn_shift, m.ffn_scale, 1, True, wide.plain, wide.step
        )
        glu = depthwise_glu(wide((after[0], after[1])), *self._stencil, scene.height, scene.width, point.step)
        return x, point(glu)
