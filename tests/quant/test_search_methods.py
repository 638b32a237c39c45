"""The two searches on made-up models whose errors are known, and on the table of the paper."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from test_search_errors import DEPTH, ERRORS, EVERY, FP8, TABLE_4

from sana_export.configs import SANA_STREAMING
from sana_quant.cost import ideal_speedup, shares
from sana_quant.groups import GROUPS
from sana_quant.policy import Policy, load_policy
from sana_quant.search.edits import changed, signature, uniform
from sana_quant.search.errors import Errors, from_sweep, sweep_policies
from sana_quant.search.front import predicted_front
from sana_quant.search.methods import Budget, additive, mixes, neighbours, paper, random_policies
from sana_quant.search.study import Measure, Score, Study, rank_correlation
from sana_quant.work import ChunkShape, transformer_work

STEADY = ChunkShape(latents=3, past_latents=8, tokens_per_frame=880)
GROUPED = [item for item in transformer_work(SANA_STREAMING.dit, STEADY) if item.group]
MPQ = load_policy("mpq", DEPTH)
ALTERNATIVES = ("nvfp4", "bf16")


def time(policy: Policy) -> float:
    return 1 / ideal_speedup(shares(GROUPED, policy))


class MadeUp:
    """A model that is additive up to `wrong`, whose groups are sensitive at depths that no sweep of ranges shows."""

    def __init__(self, seed: int, wrong: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        guess = from_sweep(FP8, replace(TABLE_4, groups=_with_bf16(TABLE_4.groups), spans=_with_bf16(TABLE_4.spans)))
        self.errors = replace(guess, delta=guess.delta * rng.lognormal(0.0, 0.7, len(guess.delta)))
        self.wrong = wrong
        self.asked: list[Policy] = []

    def measure(self, policies: Sequence[Policy]) -> list[Score]:
        self.asked += policies
        return [Score((self.rmse(policy),) * 2, ()) for policy in policies]

    def rmse(self, policy: Policy) -> float:
        twist = 1 + self.wrong * math.sin(int(signature(policy), 16) % 1000)
        return self.errors.predict(policy) * twist


def _with_bf16(errors: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    return errors | {(place, "bf16"): math.sqrt(0.45**2 - 0.05 * (rmse - 0.45)) for (place, _), rmse in errors.items()}


def study_of(measure: Measure) -> Study:
    return Study(measure, time, full=1.0, slowest=time(FP8))


@pytest.mark.parametrize("seed", range(3))
def test_the_search_comes_close_to_the_best_of_all_combinations(seed: int) -> None:
    model = MadeUp(seed, wrong=0.01)
    study = study_of(model.measure)
    additive(study, FP8, ALTERNATIVES, [MPQ], MPQ, Budget())
    best = predicted_front(model.errors, time)
    found, fast = study.cheapest(), study.best_within(time(MPQ))
    lowest = min(model.rmse(policy) * time(policy) for policy in best if time(policy) <= time(FP8))
    assert study.cost(found.policy, found.rmse) <= 1.03 * lowest
    assert study.cost(found.policy, found.rmse) < 0.9 * study.cost(MPQ, model.rmse(MPQ))
    assert fast.rmse <= 1.03 * min(model.rmse(policy) for policy in best if time(policy) <= time(MPQ))
    assert study.speedup(fast.policy) >= study.speedup(MPQ)


def test_refinement_finds_what_the_sweep_could_not_tell() -> None:
    model = MadeUp(4)
    without, refined = (study_of(model.measure) for _ in range(2))
    additive(without, FP8, ALTERNATIVES, [MPQ], MPQ, Budget(rounds=0))
    additive(refined, FP8, ALTERNATIVES, [MPQ], MPQ, Budget())
    costs = [study.cost(study.cheapest().policy, study.cheapest().rmse) for study in (without, refined)]
    assert costs[1] < 0.98 * costs[0]


def test_the_budget_is_kept_and_nothing_is_measured_twice() -> None:
    model, budget = MadeUp(2), Budget(random=2, short_list=4, rounds=2, per_round=3)
    additive(study_of(model.measure), FP8, ALTERNATIVES, [MPQ], MPQ, budget)
    asked = [signature(policy) for policy in model.asked]
    assert len(asked) == len(set(asked))
    assert len(asked) <= 1 + len(sweep_policies(FP8, ALTERNATIVES)) + 1 + budget.most


def test_a_policy_that_quantises_nothing_is_never_the_cheapest() -> None:
    study = study_of(MadeUp(0).measure)
    study.run("sweep", [FP8, replace(uniform("bf16", DEPTH, "bf16"))])
    assert study.cheapest().policy == FP8


def test_the_table_of_the_paper_leads_to_the_policy_of_the_paper() -> None:
    """Their printed errors for the policies of their search: it proposes theirs in their order, and chooses theirs."""
    printed = iter([0.56, 0.60, 0.64, 1.0])
    proposed = mixes(study_of(_never), FP8, "nvfp4", TABLE_4)
    ffn = ["FFN-Input", "FFN-Output"]
    basic = changed(FP8, ["CA-O", "SA-Q", "SA-K", "FFN-Temporal"], EVERY, "nvfp4")
    steps = [basic, *(changed(basic, ffn, range(first, DEPTH), "nvfp4") for first in (14, 6, 0))]
    assert [policy.groups for policy in proposed] == [policy.groups for policy in steps]
    table = {signature(FP8): 0.45}
    for (place, precision), policy in sweep_policies(FP8, ["nvfp4"]).items():
        table[signature(policy)] = (TABLE_4.groups if place in GROUPS else TABLE_4.spans)[place, precision]
    table |= {signature(policy): next(printed) for policy in proposed}
    found = paper(study_of(_from(table)), FP8, "nvfp4")
    assert found.policy.groups == MPQ.groups


def _never(policies: Sequence[Policy]) -> list[Score]:
    raise AssertionError("nothing is to be measured here")


def _from(table: dict[str, float]) -> Callable[[Sequence[Policy]], list[Score]]:
    return lambda policies: [Score((table[signature(policy)],), ()) for policy in policies]


def test_neighbours_differ_in_one_place_and_lead_back() -> None:
    cells = len(ERRORS.cells)
    around = neighbours(ERRORS, FP8)
    assert len(around) == cells
    assert all(FP8.groups in [policy.groups for policy in neighbours(ERRORS, one)] for one in around)


def test_random_policies_are_the_same_in_every_run_and_of_every_kind() -> None:
    model = MadeUp(0)
    drawn = random_policies(model.errors, 12)
    assert [policy.groups for policy in drawn] == [policy.groups for policy in random_policies(model.errors, 12)]
    speeds = [1 / time(policy) for policy in drawn]
    assert min(speeds) < 2 < 3 < max(speeds)


def test_the_prediction_ranks_policies_of_a_model_that_is_nearly_additive() -> None:
    model = MadeUp(0, wrong=0.05)
    study = study_of(model.measure)
    errors: Errors = additive(study, FP8, ALTERNATIVES, [MPQ], MPQ, Budget())
    drawn = [trial for trial in study.trials.values() if trial.stage == "random"]
    assert rank_correlation([errors.predict(t.policy) for t in drawn], [t.rmse for t in drawn]) >= 0.8
