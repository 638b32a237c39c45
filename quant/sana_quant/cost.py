"""What a policy costs: parameters, operations, ideal speed-up, bytes, and the roofline time on a card (spec 10)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sana_quant.policy import PRECISIONS, Policy
from sana_quant.work import ChunkShape, Transformer, Work

BASE_BITS = PRECISIONS["bf16"].bits
STATE_BYTES = 4
"""The GDN state is FP32 under every policy."""


@dataclass(frozen=True)
class Share:
    """The layers of the ten groups that run in one precision; `padded` figures count as the paper's tables do."""

    precision: str
    layers: int
    weights: int
    flops: float
    padded_weights: float
    padded_flops: float

    @property
    def bytes(self) -> float:
        return self.weights * PRECISIONS[self.precision].stored / 8


@dataclass(frozen=True)
class Rates:
    """A card's ceilings: dense tensor FLOP/s by precision, and bytes/s of its memory."""

    flops: Mapping[str, float]
    bandwidth: float


def shares(work: Iterable[Work], policy: Policy) -> list[Share]:
    """What of the ten groups runs in each precision, the narrowest first."""
    by_precision: dict[str, list[Work]] = {}
    for item in work:
        if item.group:
            by_precision.setdefault(policy.precision(item.group, item.block), []).append(item)
    return [_share(name, by_precision[name]) for name in reversed(PRECISIONS) if name in by_precision]


def _share(precision: str, work: Sequence[Work]) -> Share:
    return Share(
        precision,
        len(work),
        sum(item.weights for item in work),
        sum(item.flops for item in work),
        sum(item.weights * item.padding for item in work),
        sum(item.flops * item.padding for item in work),
    )


def ideal_speedup(parts: Sequence[Share], padded: bool = True) -> float:
    """Time of the ten groups in BF16 over their time under the policy, if time were FLOPs times bits and nothing else.

    `padded` counts a layer's FLOPs with the width of its output, and only that, rounded up to a multiple of 128: 2240
    counts as 2304. So does the paper's Table 4, where FP8 is 2 and NVFP4 is 4 times as fast as BF16.
    """
    flops = {part.precision: part.padded_flops if padded else part.flops for part in parts}
    return sum(flops.values()) / sum(value * PRECISIONS[name].bits / BASE_BITS for name, value in flops.items())


def weight_bytes(work: Iterable[Work], policy: Policy) -> float:
    """Size of the parameters as an engine stores them, scales included."""
    outside = PRECISIONS[policy.outside].stored / 8
    return sum(item.weights * _stored(item, policy) + item.others * outside for item in work)


def state_bytes(dit: Transformer, chunk: ChunkShape, policy: Policy) -> float:
    """What one stream carries from chunk to chunk: GDN states, key-value window and the tails of the FFN (spec 4.5)."""
    softmax = len(dit.softmax_blocks)
    states = (dit.depth - softmax) * dit.heads * (dit.head_dim**2 + dit.head_dim) * STATE_BYTES
    keys_values = softmax * 2 * chunk.past_tokens * dit.hidden
    tails = dit.depth * chunk.tokens_per_frame * dit.hidden
    return states + (keys_values + tails) * PRECISIONS[policy.outside].stored / 8


def roofline(work: Iterable[Work], policy: Policy, rates: Rates) -> float | None:
    """Seconds that `work` takes at the card's ceilings, one layer after another; None if one it needs is not known.

    Every layer takes the longer of its arithmetic (outputs padded to tiles) and its memory traffic: weights once,
    inputs in the layer's own precision, outputs in that of the layers outside the groups. Nothing stays in a cache
    from layer to layer, and nothing is lost on launches.
    """
    if not policy.precisions <= rates.flops.keys():
        return None
    return sum(_seconds(item, policy, rates) for item in work)


def _seconds(item: Work, policy: Policy, rates: Rates) -> float:
    precision = policy.precision(item.group, item.block)
    outside = PRECISIONS[policy.outside].stored / 8
    moved = item.weights * _stored(item, policy) + item.reads * PRECISIONS[precision].stored / 8
    moved += (item.others + item.writes) * outside
    return max(item.flops * item.padding / rates.flops[precision], moved / rates.bandwidth)


def _stored(item: Work, policy: Policy) -> float:
    return PRECISIONS[policy.precision(item.group, item.block)].stored / 8
