import math
from collections.abc import Sequence

import pytest

from sana_quant.policy import Policy
from sana_quant.search.edits import changed, named, uniform
from sana_quant.search.study import Score, Study, correlation_interval, difference, rank_correlation

FP8 = uniform("fp8", 4, "bf16")
FP4 = uniform("nvfp4", 4, "bf16")
MIXED = changed(FP8, ["SA-Q"], range(2), "nvfp4")
SPEED = {FP8.groups["SA-Q"]: 2.0, FP4.groups["SA-Q"]: 4.0, MIXED.groups["SA-Q"]: 2.5}
ERROR = {FP8.groups["SA-Q"]: 0.2, FP4.groups["SA-Q"]: 0.6, MIXED.groups["SA-Q"]: 0.3}


def study(asked: list[Policy]) -> Study:
    def measure(policies: Sequence[Policy]) -> list[Score]:
        asked.extend(policies)
        return [Score((ERROR[policy.groups["SA-Q"]],), ()) for policy in policies]

    return Study(measure, lambda policy: 1 / SPEED[policy.groups["SA-Q"]], full=1.0, slowest=0.5)


def test_a_policy_is_measured_once_whatever_it_is_called() -> None:
    asked: list[Policy] = []
    known = study(asked)
    known.run("sweep", [FP8, MIXED])
    trials = known.run("refinement", [named(MIXED, "other", "name"), FP4, FP4])
    assert asked == [FP8, MIXED, FP4]
    assert [trial.stage for trial in trials] == ["sweep", "refinement"]


def test_cost_is_error_over_speed() -> None:
    known = study([])
    known.run("sweep", [FP8, MIXED, FP4])
    assert known.speedup(FP4) == 4.0
    assert known.cost(FP4, 0.6) == pytest.approx(0.15)
    assert known.cheapest().policy == FP8
    assert known.best_within(0.4).policy == MIXED
    assert [trial.policy for trial in known.front()] == [FP4, MIXED, FP8]


def test_what_was_expected_is_kept_with_what_was_measured() -> None:
    [trial] = study([]).run("short list", [MIXED], lambda policy: 0.25)
    assert (trial.predicted, trial.rmse) == (0.25, 0.3)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 35, 36], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        # Spearman's by hand: rank differences 1, 1, 0, 0 of 4 give 1 - 6 * 2 / (4 * 15).
        ([1, 2, 3, 4], [2, 1, 3, 4], 0.8),
        # The tied ranks 2.5 and 2.5 against 2 and 3: Pearson's of the ranks.
        ([1, 5, 5, 9], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),
    ],
)
def test_rank_correlation(one: list[float], other: list[float], expected: float) -> None:
    assert rank_correlation(one, other) == pytest.approx(expected)


def test_few_pairs_say_little_about_a_correlation() -> None:
    few, many = correlation_interval(0.9, 6), correlation_interval(0.9, 24)
    assert few[0] < 0.2 < 0.7 < many[0] < 0.9 < many[1] < few[1] < 1
    # By hand: arctanh(0.9) = 1.472, and its standard error is sqrt(1.405 / 21) = 0.259.
    assert many == pytest.approx((0.747, 0.963), abs=1e-3)
    assert correlation_interval(1.0, 24) == (1.0, 1.0)
    assert correlation_interval(0.5, 3) == (-1.0, 1.0)


def test_a_paired_difference_ignores_what_both_share() -> None:
    gap = difference([10.1, 20.2, 30.3], [10.0, 20.0, 30.0])
    assert gap.mean == pytest.approx(0.2)
    assert gap.error == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(difference([1.0], [2.0]).error)
