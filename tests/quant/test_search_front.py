import itertools

import numpy as np
import pytest

from sana_quant.groups import block_ranges
from sana_quant.policy import Policy
from sana_quant.search.edits import changed, uniform
from sana_quant.search.errors import Cell, Errors
from sana_quant.search.front import pareto, predicted_front

DEPTH = 4
BASE = uniform("fp8", DEPTH, "bf16")
GROUPS = ("SA-Q", "SA-O", "FFN-Input", "CA-KV")
CELLS = tuple(
    Cell(group, span, precision) for group in GROUPS for span in ("shallow", "deep") for precision in ("nvfp4", "bf16")
)
BITS = {"nvfp4": 4, "fp8": 8, "bf16": 16}
SIZES = {"SA-Q": 1.0, "SA-O": 1.3, "FFN-Input": 5.9, "CA-KV": 0.4}


def time(policy: Policy) -> float:
    return sum(size * BITS[precision] for group, size in SIZES.items() for precision in policy.groups[group])


def random_errors(seed: int) -> Errors:
    rng = np.random.default_rng(seed)
    signs = np.array([1.0 if cell.precision == "nvfp4" else -0.1 for cell in CELLS])
    return Errors(BASE, 1.0, CELLS, signs * rng.uniform(0.01, 0.2, len(CELLS)))


def every_policy() -> list[Policy]:
    spans = block_ranges(DEPTH)
    places = list(itertools.product(GROUPS, ("shallow", "deep")))
    policies = []
    for choice in itertools.product(("fp8", "nvfp4", "bf16"), repeat=len(places)):
        policy = BASE
        for (group, span), precision in zip(places, choice, strict=True):
            policy = changed(policy, [group], spans[span], precision)
        policies.append(policy)
    return policies


@pytest.mark.parametrize("seed", [0, 1])
def test_the_predicted_front_is_that_of_all_combinations(seed: int) -> None:
    errors = random_errors(seed)
    best = pareto(every_policy(), time, errors.predict)
    found = predicted_front(errors, time)
    assert time(found[0]) == time(best[0])
    assert errors.predict(found[-1]) == pytest.approx(errors.predict(best[-1]))
    # Times are rounded to the grid, so a policy may be missed for one that is as good and 1 % slower.
    for policy in best:
        near = [errors.predict(one) for one in found if time(one) <= 1.01 * time(policy)]
        assert min(near) <= errors.predict(policy) + 1e-9


def test_the_cheapest_of_the_front_is_the_cheapest_of_all() -> None:
    errors = random_errors(3)
    cost = min(errors.predict(policy) * time(policy) for policy in every_policy())
    assert min(errors.predict(p) * time(p) for p in predicted_front(errors, time)) == pytest.approx(cost, rel=0.005)


def test_a_policy_that_is_slower_and_worse_is_not_on_the_front() -> None:
    points = [(1, 9), (2, 5), (3, 6), (2, 7), (4, 5), (5, 1)]
    assert pareto(points, lambda p: p[0], lambda p: p[1]) == [(1, 9), (2, 5), (5, 1)]


def test_without_a_choice_the_base_is_the_front() -> None:
    assert predicted_front(random_errors(0), lambda policy: 1.0) == [BASE]
