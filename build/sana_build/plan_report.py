"""What a policy makes of a model on a card: one dictionary of figures, which is the JSON of `sana-build plan`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sana_build.gpus import Edition, Figure, Gpu, choose_gpu, choose_policy, editions
from sana_build.libraries import obstacle
from sana_build.plan import STAGES, streaming_model
from sana_build.sizes import engine_bytes, steady_chunk
from sana_quant.cost import Share, ideal_speedup, roofline, shares, state_bytes, weight_bytes
from sana_quant.groups import GROUPS, HIGH_PRECISION
from sana_quant.policy import Policy
from sana_quant.work import Work, transformer_work

if TYPE_CHECKING:
    from sana_export.configs import ModelConfig

Figures = dict[str, Any]


def plan_report(
    model: str, policy: str | None, gpu: str, checkpoint: str | None, backend: str | None = None
) -> Figures:
    """The figures of what these names stand for; raises ConfigError or CheckpointError as a build would.

    Weights are looked at only where `checkpoint` names some.
    """
    config = streaming_model(model)
    card = choose_gpu(gpu, backend)
    chosen = choose_policy(card, policy, config.dit.depth)
    if checkpoint is None:
        return figures(config, chosen, card, f"{config.checkpoint} (not looked at)")
    from sana_export.checkpoint import resolve

    weights = resolve(checkpoint, config)
    weights.check(config)
    return figures(config, chosen, card, f"{weights.describe()}, fits the model")


def figures(model: "ModelConfig", policy: Policy, gpu: Gpu, checkpoint: str) -> Figures:
    """Everything that the report says, ready for JSON; FLOPs are those of one evaluation on one steady chunk."""
    work = transformer_work(model.dit, steady_chunk(model))
    parts = shares(work, policy)
    engines = _engines(model, policy, gpu)
    fitting = {card.name: each.policy for each in editions(gpu, policy, model.dit.depth) for card in each.cards}
    return {
        "model": model.name,
        "checkpoint": checkpoint,
        "gpu": {"name": gpu.name, "title": gpu.title, "backend": gpu.backend, "obstacle": obstacle(gpu)},
        "policy": {"name": policy.name, "title": policy.title},
        "chunk": _chunk(model),
        "precisions": _precisions(parts),
        "outside": _outside(work, parts, policy),
        "ideal_speedup": {"padded": ideal_speedup(parts), "exact": ideal_speedup(parts, padded=False)},
        "groups": {group: _blocks(policy.groups[group]) for group in GROUPS},
        "cards": [_card(card, fitting[card.name], work, _passes(model)) for card in gpu.cards],
        "engines": engines,
        "engine_bytes": sum(engine["bytes"] for engine in engines),
        "state_bytes_per_stream": round(state_bytes(model.dit, steady_chunk(model), policy)),
    }


def _passes(model: "ModelConfig") -> int:
    """Evaluations per chunk: one per denoising step, and one that writes the cache."""
    return model.stream.steps + 1


def _chunk(model: "ModelConfig") -> Figures:
    chunk = steady_chunk(model)
    return {
        "frames": model.geometry.steady_frames,
        "tokens": chunk.tokens,
        "keys": chunk.tokens + chunk.past_tokens,
        "text_tokens": model.dit.text_tokens,
        "passes": _passes(model),
    }


def _precisions(parts: list[Share]) -> list[Figures]:
    weights, flops = sum(part.padded_weights for part in parts), sum(part.padded_flops for part in parts)
    return [
        {
            "precision": part.precision,
            "layers": part.layers,
            "params_m": part.weights / 1e6,
            "gflop": part.flops / 1e9,
            "padded_params_m": part.padded_weights / 1e6,
            "padded_gflop": part.padded_flops / 1e9,
            "param_share": part.padded_weights / weights,
            "flop_share": part.padded_flops / flops,
            "bytes": round(part.bytes),
        }
        for part in parts
    ]


def _outside(work: list[Work], parts: list[Share], policy: Policy) -> Figures:
    """All that is not a weight of a group: other layers, attention cores, and the biases of the groups."""
    return {
        "precision": policy.outside,
        "modules": list(HIGH_PRECISION),
        "params_m": (sum(item.parameters for item in work) - sum(part.weights for part in parts)) / 1e6,
        "gflop": sum(item.flops for item in work if item.group is None) / 1e9,
        "bytes": round(weight_bytes(work, policy) - sum(part.bytes for part in parts)),
    }


def _blocks(precisions: tuple[str, ...]) -> dict[str, str]:
    """The blocks of each precision, as "0-5, 14-19"."""
    runs: dict[str, list[range]] = {}
    for block, precision in enumerate(precisions):
        spans = runs.setdefault(precision, [])
        if spans and spans[-1].stop == block:
            spans[-1] = range(spans[-1].start, block + 1)
        else:
            spans.append(range(block, block + 1))
    return {precision: ", ".join(map(_span, spans)) for precision, spans in runs.items()}


def _span(blocks: range) -> str:
    return f"{blocks[0]}-{blocks[-1]}" if len(blocks) > 1 else str(blocks[0])


def _card(card: Gpu, policy: Policy, work: list[Work], passes: int) -> Figures:
    """A card's ceilings with their sources, and roofline times in ms, None where a ceiling is missing.

    What runs once per prompt (CA-KV and y_embedder) is in no time.
    """
    parts: dict[str, list[Work]] = {}
    for item in work:
        if not item.per_prompt:
            parts.setdefault(policy.precision(item.group, item.block) if item.group else "outside", []).append(item)
    evaluation = _milliseconds(card, policy, [item for items in parts.values() for item in items])
    return {
        "name": card.name,
        "policy": policy.name,
        "memory_gb": _sourced(card.memory),
        "bandwidth_gb_s": _sourced(card.bandwidth),
        "tensor_tflops": {precision: _sourced(figure) for precision, figure in card.tensor.items()},
        "parts_ms": {name: _milliseconds(card, policy, items) for name, items in parts.items()},
        "pass_ms": evaluation,
        "chunk_ms": None if evaluation is None else passes * evaluation,
    }


def _milliseconds(card: Gpu, policy: Policy, work: list[Work]) -> float | None:
    seconds = roofline(work, policy, card.rates) if card.rates else None
    return None if seconds is None else 1e3 * seconds


def _sourced(figure: Figure | None) -> Figures | None:
    return None if figure is None else asdict(figure)


def _engines(model: "ModelConfig", policy: Policy, gpu: Gpu) -> list[Figures]:
    """One engine per stage and variant; a family has the denoiser's once for each policy that its cards need."""
    engines = []
    for stage, variants in STAGES.items():
        shared = stage != "denoiser"
        for edition in [Edition(policy, gpu.cards)] if shared else editions(gpu, policy, model.dit.depth):
            sizes = engine_bytes(model, edition.policy)
            engines += [
                {
                    "stage": stage,
                    "variant": variant,
                    "runs": edition.policy.outside if shared else edition.policy.name,
                    "cards": [card.name for card in edition.cards],
                    "bytes": round(sizes[stage, variant]),
                }
                for variant in variants
            ]
    return engines
