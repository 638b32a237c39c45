"""Prediction from additive squared errors, against the paper's own Table 4."""

from dataclasses import replace

import numpy as np
import pytest

from sana_quant.groups import GROUPS, block_ranges
from sana_quant.policy import Policy
from sana_quant.search.edits import changed, uniform
from sana_quant.search.errors import Cell, Sweep, from_sweep, sweep_policies

DEPTH = 20
EVERY = range(DEPTH)
FP8 = uniform("fp8", DEPTH, "bf16")
TABLE_4 = Sweep(
    base=0.45,
    groups={
        (group, "nvfp4"): error
        for group, error in {
            "FFN-Input": 0.65,
            "FFN-Output": 0.57,
            "FFN-Temporal": 0.52,
            "SA-O": 0.61,
            "SA-Q": 0.47,
            "SA-K": 0.49,
            "SA-V": 0.56,
            "CA-Q": 0.54,
            "CA-O": 0.46,
            "CA-KV": 0.49,
        }.items()
    },
    spans={("shallow", "nvfp4"): 0.79, ("middle", "nvfp4"): 0.71, ("deep", "nvfp4"): 0.64},
)
ERRORS = from_sweep(FP8, TABLE_4)


def mix(ffn_blocks: range) -> Policy:
    basic = changed(FP8, ["CA-O", "SA-Q", "SA-K", "FFN-Temporal"], EVERY, "nvfp4")
    return changed(basic, ["FFN-Input", "FFN-Output"], ffn_blocks, "nvfp4")


@pytest.mark.parametrize(
    ("policy", "rmse"),
    [
        (FP8, 0.45),
        (uniform("nvfp4", DEPTH, "bf16"), 1.042),
        (mix(range(0)), 0.579),
        (mix(range(14, 20)), 0.642),
        (mix(range(6, 20)), 0.723),
    ],
)
def test_the_table_of_the_paper_predicts_its_own_mixes(policy: Policy, rmse: float) -> None:
    assert round(ERRORS.predict(policy), 3) == rmse


@pytest.mark.parametrize("group", GROUPS)
def test_a_measured_group_is_predicted_as_measured(group: str) -> None:
    alone = changed(FP8, [group], EVERY, "nvfp4")
    assert ERRORS.predict(alone) == pytest.approx(TABLE_4.groups[group, "nvfp4"])


def test_a_group_is_split_over_depth_as_the_ranges_are() -> None:
    delta = dict(zip(ERRORS.cells, ERRORS.delta, strict=True))
    whole = sum(delta[Cell("SA-V", span, "nvfp4")] for span in block_ranges(DEPTH))
    shares = [delta[Cell("SA-V", span, "nvfp4")] / whole for span in block_ranges(DEPTH)]
    assert [round(100 * share) for share in shares] == [45, 32, 22]


def test_half_of_a_range_of_blocks_has_half_of_its_error() -> None:
    whole, half = (changed(FP8, ["SA-O"], range(6, end), "nvfp4") for end in (14, 10))
    rises = [ERRORS.predict(policy) ** 2 - 0.45**2 for policy in (whole, half)]
    assert rises[1] == pytest.approx(rises[0] / 2)


def test_a_wider_format_takes_error_away_and_never_below_zero() -> None:
    wider = {(group, "bf16"): 0.44 for group in GROUPS}
    spans = {("shallow", "bf16"): 0.35, ("middle", "bf16"): 0.46, ("deep", "bf16"): 0.40}
    errors = from_sweep(FP8, Sweep(0.45, wider, spans))
    delta = dict(zip(errors.cells, errors.delta, strict=True))
    assert errors.predict(changed(FP8, ["SA-Q"], EVERY, "bf16")) == pytest.approx(0.44)
    # The middle got worse, against the trend, so it has no part in what was won.
    assert delta[Cell("SA-Q", "middle", "bf16")] == 0
    assert delta[Cell("SA-Q", "shallow", "bf16")] < delta[Cell("SA-Q", "deep", "bf16")] < 0


def test_all_that_groups_can_take_away_is_the_error_there_is() -> None:
    wider = {(group, "bf16"): 0.42 for group in GROUPS}
    spans = {(span, "bf16"): 0.40 for span in block_ranges(DEPTH)}
    errors = from_sweep(FP8, Sweep(0.45, wider, spans))
    assert errors.predict(uniform("bf16", DEPTH, "bf16")) == pytest.approx(0, abs=1e-7)
    assert errors.predict(changed(FP8, [*GROUPS][:5], EVERY, "bf16")) == pytest.approx(0.45 / 2**0.5)


def test_a_sweep_measures_every_group_and_every_range() -> None:
    policies = sweep_policies(FP8, ["nvfp4", "bf16"])
    assert policies.keys() == {(place, p) for place in (*GROUPS, *block_ranges(DEPTH)) for p in ("nvfp4", "bf16")}
    deep = policies["deep", "nvfp4"]
    assert all(precisions == ("fp8",) * 14 + ("nvfp4",) * 6 for precisions in deep.groups.values())


def test_refitting_learns_where_a_group_is_sensitive() -> None:
    """The truth puts all of FFN-Input into its shallow blocks; one measurement of them says so."""
    truth = np.array([_truth(cell, delta) for cell, delta in zip(ERRORS.cells, ERRORS.delta, strict=True)])
    world = replace(ERRORS, delta=truth)
    seen = [changed(FP8, ["FFN-Input"], blocks, "nvfp4") for blocks in (EVERY, range(6))]
    unseen = changed(FP8, ["FFN-Input"], range(6, 20), "nvfp4")
    learned = ERRORS.refitted([(policy, world.predict(policy)) for policy in seen])
    assert world.predict(unseen) == pytest.approx(0.45)
    assert abs(learned.predict(unseen) - 0.45) < 0.2 * abs(ERRORS.predict(unseen) - 0.45)
    other = changed(FP8, ["SA-V"], range(6), "nvfp4")
    assert learned.predict(other) == pytest.approx(ERRORS.predict(other))


def _truth(cell: Cell, delta: float) -> float:
    if cell.group != "FFN-Input":
        return delta
    return 0.65**2 - 0.45**2 if cell.span == "shallow" else 0.0


def test_what_was_predicted_right_changes_nothing() -> None:
    policies = [mix(range(0)), mix(range(6, 20))]
    again = ERRORS.refitted([(policy, ERRORS.predict(policy)) for policy in policies])
    assert np.allclose(again.delta, ERRORS.delta)
    assert np.allclose(ERRORS.refitted([]).delta, ERRORS.delta)
