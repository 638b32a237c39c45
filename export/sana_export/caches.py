"""What one chunk of a stream leaves for the next, per transformer block (spec 4.3)."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GDNCache:
    """Of a GDN block: state_kv (B, h, dv, dk), state_z (B, h, dk), and the FFN's last frame tconv (B, S, C)."""

    state_kv: Tensor
    state_z: Tensor
    tconv: Tensor


@dataclass(frozen=True)
class KVCache:
    """Of a softmax block: rotated keys and plain values k, v (B, h, tokens, d), and tconv (B, S, C).

    A block reads the keys of the whole past window, any number of tokens, and returns those of its own chunk.
    """

    k: Tensor
    v: Tensor
    tconv: Tensor


Cache = GDNCache | KVCache


@dataclass(frozen=True)
class Prompt:
    """A prompt as every block's cross-attention reads it: k, v per block (B, h, L, d), and bias (B, 1, 1, L)."""

    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    bias: Tensor
