"""Two ways to find a policy: by predicting all of them from a sweep, and the paper's, group by group."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sana_quant.groups import GROUPS, block_ranges
from sana_quant.policy import Policy
from sana_quant.search.edits import changed, depth_of, signature
from sana_quant.search.errors import Cell, Errors, Sweep, from_sweep, sweep_policies
from sana_quant.search.front import predicted_front
from sana_quant.search.study import Study, Trial


@dataclass(frozen=True)
class Budget:
    """How many policies may be measured after the sweep: random ones, a short list, then rounds of refinement.

    Of six random ones the rank correlation with the prediction says little: it may come out 0.2 lower by chance alone.
    """

    random: int = 24
    short_list: int = 10
    rounds: int = 4
    per_round: int = 4

    @property
    def most(self) -> int:
        return self.random + self.short_list + self.rounds * self.per_round


def additive(
    study: Study, base: Policy, precisions: Sequence[str], known: Iterable[Policy], limit: Policy, budget: Budget
) -> Errors:
    """Sweep, predict every combination, measure a short list, refine; returns the estimate that the sweep alone gave.

    `precisions` are those a layer may have besides the base's, `known` policies measured for comparison. Besides the
    lowest cost, the smallest error is looked for among policies at least as fast as `limit`.
    """
    [start] = study.run("baseline", [base])
    swept = sweep_policies(base, precisions)
    trials = dict(zip(swept, study.run("sweep", swept.values()), strict=True))
    errors = from_sweep(base, sweep_of(start, trials))
    study.run("comparison", known, errors.predict)
    study.run("random", random_policies(errors, budget.random), errors.predict)
    study.run("short list", short_list(study, errors, budget.short_list), errors.predict)
    before = standing(study, limit)
    for _ in range(budget.rounds):
        model = errors.refitted(study.measured())
        study.run("refinement", proposals(study, model, limit, budget.per_round), model.predict)
        if (now := standing(study, limit)) == before:
            break
        before = now
    return errors


def sweep_of(base: Trial, trials: Mapping[tuple[str, str], Trial]) -> Sweep:
    """The measured errors of a sweep, groups and ranges of blocks apart."""
    errors = {place: trial.rmse for place, trial in trials.items()}
    groups = {place: error for place, error in errors.items() if place[0] in GROUPS}
    return Sweep(base.rmse, groups, {place: error for place, error in errors.items() if place not in groups})


def standing(study: Study, limit: Policy) -> tuple[str, str]:
    """What has been found so far, for both aims."""
    return signature(study.cheapest().policy), signature(study.best_within(study.time(limit)).policy)


def random_policies(errors: Errors, count: int) -> list[Policy]:
    """Combinations of cells in all proportions: what a prediction is judged by, since nobody chose them by it."""
    rng = np.random.default_rng(0)
    places: dict[tuple[str, str], list[Cell]] = {}
    for cell in errors.cells:
        places.setdefault((cell.group, cell.span), []).append(cell)
    policies = []
    for _ in range(count):
        shares = rng.dirichlet(np.ones(1 + max(map(len, places.values()))))
        drawn = ((rng.choice(len(shares), p=shares), cells) for cells in places.values())
        policies.append(errors.applied(cells[index] for index, cells in drawn if index < len(cells)))
    return policies


def short_list(study: Study, errors: Errors, size: int) -> list[Policy]:
    """Half of it the cheapest of the predicted front, the rest spread over all speeds of that front."""
    front = _choosable(study, predicted_front(errors, study.time))
    places = np.linspace(0, len(front) - 1, min(size - size // 2, len(front))).round().astype(int)
    cheapest = sorted(front, key=predicted_cost(study, errors))
    return _distinct([*(front[place] for place in places), *cheapest])[:size]


def proposals(study: Study, errors: Errors, limit: Policy, count: int) -> list[Policy]:
    """What a new estimate thinks best, for both aims in turn: of its front, or one cell away from the best known."""
    longest = study.time(limit)
    known = (study.cheapest().policy, study.best_within(longest).policy)
    nearby = [policy for one in known for policy in neighbours(errors, one)]
    pool = _choosable(study, [*predicted_front(errors, study.time), *nearby])
    cheap = sorted(pool, key=predicted_cost(study, errors))
    fast = sorted((policy for policy in pool if study.time(policy) <= longest), key=errors.predict)
    return _distinct([*cheap[: count - count // 2], *fast[: count // 2], *cheap[count - count // 2 :]])[:count]


def predicted_cost(study: Study, errors: Errors) -> Callable[[Policy], float]:
    return lambda policy: study.cost(policy, errors.predict(policy))


def neighbours(errors: Errors, policy: Policy) -> list[Policy]:
    """Every policy that differs in one group of one range of blocks."""
    spans = block_ranges(depth_of(policy))
    back = {Cell(cell.group, cell.span, errors.base.groups[cell.group][0]) for cell in errors.cells}
    cells = [*errors.cells, *sorted(back, key=lambda cell: (cell.group, cell.span))]
    moved = [changed(policy, [cell.group], spans[cell.span], cell.precision) for cell in cells]
    return [each for each in moved if each.groups != policy.groups]


def _choosable(study: Study, policies: Iterable[Policy]) -> list[Policy]:
    """Those that are fast enough to be chosen and not measured yet."""
    return [policy for policy in policies if study.time(policy) <= study.slowest and not study.knows(policy)]


def _distinct(policies: Iterable[Policy]) -> list[Policy]:
    return list({signature(policy): policy for policy in policies}.values())


MIX_TOLERANCE = 1.07
"""A group joins the paper's Basic Mix if FP4 in it alone costs at most this much of FP8 everywhere.

The paper does not say where it draws the line: its table has 1.06 for the last group in and 1.08 for the first out.
"""

LARGE_SHARE = 0.1
"""Of the FLOPs, as a saving in time: groups that the paper extends its mix by, range by range."""


def paper(study: Study, base: Policy, precision: str) -> Trial:
    """The paper's search: each group alone, each range of blocks, the cheap groups together, then the large ones."""
    [start] = study.run("baseline", [base])
    swept = sweep_policies(base, [precision])
    trials = dict(zip(swept, study.run("sweep", swept.values()), strict=True))
    policies = mixes(study, base, precision, sweep_of(start, trials))
    return min(study.run("mix", policies), key=lambda trial: study.cost(trial.policy, trial.rmse))


def mixes(study: Study, base: Policy, precision: str, sweep: Sweep) -> list[Policy]:
    """The Basic Mix, then with the large remaining groups in more and more ranges, the least sensitive first."""
    every, spans = range(depth_of(base)), block_ranges(depth_of(base))
    alone = {group: changed(base, [group], every, precision) for group in GROUPS}
    most = MIX_TOLERANCE * study.cost(base, sweep.base)
    cheap = [group for group in GROUPS if study.cost(alone[group], sweep.groups[group, precision]) <= most]
    rest = [group for group in GROUPS if group not in cheap and _share(study, base, alone[group]) >= LARGE_SHARE]
    policies = [changed(base, cheap, every, precision)]
    whole = {span: changed(base, GROUPS, blocks, precision) for span, blocks in spans.items()}
    for span in sorted(spans, key=lambda span: study.cost(whole[span], sweep.spans[span, precision])):
        policies.append(changed(policies[-1], rest, spans[span], precision))
    return policies


def _share(study: Study, base: Policy, policy: Policy) -> float:
    """How much of the FLOPs a policy moved: in FP4 they take half the time they take in FP8."""
    return 2 * (1 - study.time(policy) / study.time(base))
