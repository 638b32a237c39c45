"""What a search leaves behind: results.json, the policies it found as TOML, and a report with its figures."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sana_build import search_plots
from sana_quant.cost import shares
from sana_quant.groups import GROUPS
from sana_quant.policy import Policy
from sana_quant.scores import perceptual
from sana_quant.search.edits import named, short, to_toml
from sana_quant.search.study import Trial, correlation_interval, difference, rank_correlation
from sana_quant.work import transformer_work

if TYPE_CHECKING:
    from sana_build.search import Outcome

Figures = dict[str, Any]

FIXED = "mpq"
"""The paper's policy, which a found one is compared with."""

MEANING = {
    "paper's search": "what the paper's own steps choose on this model",
    "fast": f"the smallest error at no less than the speed of the paper's choice, `{FIXED}`",
    "found": "the lowest cost at no less than the speed of fp8",
}
"""Of the picks that a search makes."""

TEACHING = ("baseline", "sweep")
"""Stages that the prediction is made from; it is judged by all others."""

MEASURED = ("NVFP4, % of FLOPs", "speed-up", "RelRMSE", "cost")
"""Heads of what `_row` says of a policy, after its name."""


def write(outcome: "Outcome") -> None:
    """Everything into the output folder of the plan."""
    folder = outcome.plan.output
    figures = results(outcome)
    (folder / "results.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_policies(outcome)
    search_plots.draw(outcome, figures, folder)
    (folder / "report.md").write_text("\n".join(report(outcome, figures)) + "\n")


def write_policies(outcome: "Outcome") -> None:
    """The picks that are new, and every policy of the measured front, the fastest first."""
    folder = outcome.plan.output / "policies"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.toml"):
        stale.unlink()
    chosen = {name: outcome.picks[name] for name in ("found", "fast") if name in outcome.picks}
    chosen |= {f"front-{number:02}": trial for number, trial in enumerate(outcome.study.front(), 1)}
    for name, trial in chosen.items():
        speedup = outcome.study.speedup(trial.policy)
        title = f"search on {outcome.plan.model.name}: RelRMSE {trial.rmse:.4f}, ideal speed-up {speedup:.2f}"
        (folder / f"{name}.toml").write_text(to_toml(named(trial.policy, name, title)))


def results(outcome: "Outcome") -> Figures:
    """Every figure of the search, ready for JSON."""
    plan, study = outcome.plan, outcome.study
    return {
        "model": plan.model.name,
        "checkpoint": plan.setting.checkpoint.describe(),
        "gpu": plan.gpu.name,
        "method": plan.method,
        "steps": plan.model.stream.steps,
        "chunks": plan.setting.chunks,
        "streams": [plan.setting.describe(index) for index in range(len(plan.setting.streams()))],
        "held_out_streams": [plan.held_out.describe(index) for index in range(len(plan.held_out.streams()))],
        "other_prompts": plan.held_out.prompts != plan.setting.prompts,
        "perceptual": perceptual().title,
        "seconds": outcome.seconds,
        "prediction": prediction(outcome),
        "picks": {name: pick(outcome, name) for name in outcome.picks},
        "front": [short(trial.policy, "fp8") for trial in study.front()],
        "card_front": [short(trial.policy, "fp8") for trial in study.front(outcome.card)] if outcome.card else None,
        "trials": [trial_figures(outcome, trial) for trial in study.trials.values()],
    }


def trial_figures(outcome: "Outcome", trial: Trial) -> Figures:
    study, policy = outcome.study, trial.policy
    return {
        "policy": short(policy, "fp8"),
        "stage": trial.stage,
        "speedup": study.speedup(policy),
        "fp4_share": fp4_share(outcome, policy),
        "card_ms": None if outcome.card is None else 1e3 * outcome.card(policy),
        "rmse": trial.rmse,
        "cost": study.cost(policy, trial.rmse),
        "predicted": None if outcome.errors is None else outcome.errors.predict(policy),
        "predicted_when_measured": trial.predicted,
        "rmse_of_streams": list(trial.score.rmse),
        "groups": {group: list(policy.groups[group]) for group in GROUPS},
    }


def fp4_share(outcome: "Outcome", policy: Policy) -> float:
    """Of the FLOPs of the ten groups, counted as the paper does."""
    from sana_build.sizes import steady_chunk

    model = outcome.plan.model
    parts = shares(transformer_work(model.dit, steady_chunk(model)), policy)
    return sum(part.padded_flops for part in parts if part.precision == "nvfp4") / sum(p.padded_flops for p in parts)


def pick(outcome: "Outcome", name: str) -> Figures:
    """A pick with what it is worth on the held-out streams, and its difference to the fixed policy there."""
    trial, found = outcome.picks[name], outcome.findings[name].score
    fixed = outcome.findings[FIXED].score
    gap = difference(found.rmse, fixed.rmse)
    return {
        **trial_figures(outcome, trial),
        "held_out_rmse": found.mean,
        "held_out_rmse_of_streams": list(found.rmse),
        "held_out_cost": outcome.study.cost(trial.policy, found.mean),
        "held_out_perceptual": float(np.mean(found.perceptual)),
        "held_out_minus_fixed": {"mean": gap.mean, "standard_error": gap.error},
    }


def prediction(outcome: "Outcome") -> Figures | None:
    """How well the sweep alone predicted the policies that it did not measure."""
    if outcome.errors is None:
        return None
    trials = [trial for trial in outcome.study.trials.values() if trial.stage not in TEACHING]
    predicted, measured = [outcome.errors.predict(trial.policy) for trial in trials], [trial.rmse for trial in trials]
    drawn = [index for index, trial in enumerate(trials) if trial.stage == "random"]
    ratios = np.divide(predicted, measured)
    # A policy with next to no error is predicted badly relative to it, and one such would be all that a range shows.
    low, middle, high = np.percentile(ratios, [5, 50, 95]).tolist()
    by_chance = rank_correlation(*([values[index] for index in drawn] for values in (predicted, measured)))
    return {
        "policies": len(trials),
        "rank_correlation": rank_correlation(predicted, measured),
        "random_policies": len(drawn),
        "random_rank_correlation": by_chance,
        "random_rank_correlation_interval": correlation_interval(by_chance, len(drawn)),
        "median_ratio": middle,
        "nine_in_ten_ratios": (low, high),
    }


def report(outcome: "Outcome", figures: Figures) -> Iterator[str]:
    """The report in Markdown, line by line."""
    yield from _head(figures)
    yield from _picks(figures)
    yield from _groups(figures)
    if figures["prediction"]:
        yield from _prediction(figures["prediction"])
    yield from _front(figures)
    yield from _strips(figures)
    yield from _trials(figures)


def _head(figures: Figures) -> Iterator[str]:
    count, chunks = len(figures["streams"]), figures["chunks"]
    yield f"# Precision policy of `{figures['model']}` on `{figures['gpu']}`"
    yield ""
    yield f"Written by `sana-build search --method {figures['method']}`; weights: {figures['checkpoint']}."
    yield ""
    yield (
        f"A policy's error is the RelRMSE of its edited latents against streams without any quantisation, with the "
        f"same noise, averaged over {count} streams of {chunks} chunks at {figures['steps']} steps. Its speed-up is "
        "the ideal one of the ten groups over BF16, and its cost is error over speed-up, both as in the paper's "
        f"Table 4: arithmetic, not a measurement on a card. {len(figures['trials'])} policies were measured. A clip "
        "that is too short is played there and back."
    )
    yield ""
    for stream in figures["streams"]:
        yield f"* {stream}"


def _picks(figures: Figures) -> Iterator[str]:
    yield ""
    yield "## Result"
    yield ""
    checked = ["held out: RelRMSE", "cost", f"RelRMSE minus {FIXED}", "perceptual"]
    yield from _table(["policy", *MEASURED, *checked], [_pick_row(name, row) for name, row in figures["picks"].items()])
    yield ""
    yield (
        f"The held-out streams have {'other' if figures['other_prompts'] else 'the same'} prompts, another stretch of "
        "the clip and other noise. The difference there is paired, stream by stream, with its standard error. The last "
        f"column is {figures['perceptual']}."
    )
    yield ""
    for name, meaning in MEANING.items():
        if name in figures["picks"]:
            yield f"* `{name}`, {meaning}: {figures['picks'][name]['policy']}; all else fp8"


def _pick_row(name: str, row: Figures) -> list[str]:
    gap = row["held_out_minus_fixed"]
    return [
        f"`{name}`",
        *_row(row)[1:],
        f"{row['held_out_rmse']:.4f}",
        f"{row['held_out_cost']:.4f}",
        f"{gap['mean']:+.4f} ± {gap['standard_error']:.4f}" if gap["mean"] else "",
        f"{row['held_out_perceptual']:.4f}",
    ]


def _groups(figures: Figures) -> Iterator[str]:
    yield ""
    yield "## One group, or one range of blocks, in another precision"
    yield ""
    yield "![Every group on quality against speed, as in the paper's Figure 6](groups.png)"
    yield ""
    rows = [row for row in figures["trials"] if row["stage"] in TEACHING]
    yield from _table(["all fp8 but", *MEASURED], [_row(row) for row in rows])


def _row(row: Figures) -> list[str]:
    share, speedup = f"{100 * row['fp4_share']:.0f}", f"{row['speedup']:.2f}"
    return [row["policy"], share, speedup, f"{row['rmse']:.4f}", f"{row['cost']:.4f}"]


def _prediction(found: Figures) -> Iterator[str]:
    low, high = found["random_rank_correlation_interval"]
    smallest, largest = found["nine_in_ten_ratios"]
    yield ""
    yield "## Prediction"
    yield ""
    yield "![Predicted against measured RelRMSE](predicted.png)"
    yield ""
    yield (
        f"Squared errors add up: the table above predicts every combination. Against the {found['policies']} policies "
        f"that were measured afterwards the rank correlation (Spearman) is **{found['rank_correlation']:.3f}**; "
        f"predicted over measured is {found['median_ratio']:.2f} in the median and {smallest:.2f} to {largest:.2f} for "
        f"nine in ten. Many of these were measured because they were predicted to be good; over the "
        f"{found['random_policies']} that were drawn at random the correlation is "
        f"**{found['random_rank_correlation']:.3f}** ({low:.2f} to {high:.2f} with 95 % confidence)."
    )


def _front(figures: Figures) -> Iterator[str]:
    yield ""
    yield "## Pareto front"
    yield ""
    yield "![Error against speed of every measured policy](front.png)"
    yield ""
    yield "No measured policy is faster and better than one of these (ideal speed-up), the fastest first:"
    yield ""
    rows = {row["policy"]: row for row in figures["trials"]}
    yield from _table(["all fp8 but", *MEASURED], [_row(rows[label]) for label in figures["front"]])


def _strips(figures: Figures) -> Iterator[str]:
    yield ""
    yield "## Pictures"
    yield ""
    yield "![Last frames of the held-out streams](strips.jpg)"
    yield ""
    yield "The last frame of every held-out stream, and eight times its difference to the edit without quantisation:"
    yield ""
    for stream in figures["held_out_streams"]:
        yield f"* {stream}"


def _trials(figures: Figures) -> Iterator[str]:
    yield ""
    yield "## Measured after the sweep"
    yield ""
    rows = [row for row in figures["trials"] if row["stage"] not in TEACHING]
    yield from _table(
        ["stage", "all fp8 but", "speed-up", "predicted", "RelRMSE", "cost"],
        [
            [row["stage"], row["policy"], f"{row['speedup']:.2f}", _number(row["predicted"]), *_row(row)[3:]]
            for row in rows
        ],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
