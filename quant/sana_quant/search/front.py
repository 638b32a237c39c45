"""Which policies are worth having: the predicted best at every speed over all combinations, and Pareto fronts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from sana_quant.policy import Policy
from sana_quant.search.errors import Cell, Errors

T = TypeVar("T")

Time = Callable[[Policy], float]
"""Time of one evaluation under a policy, a sum over layers, in any unit."""

BINS = 4096

POINTS = 256
"""Of the front, at most so many, evenly over its speeds."""


def pareto(items: Iterable[T], time: Callable[[T], float], error: Callable[[T], float]) -> list[T]:
    """The items that no other beats in time and in error, the fastest first."""
    front: list[T] = []
    for item in sorted(items, key=lambda item: (time(item), error(item))):
        if not front or error(item) < error(front[-1]):
            front.append(item)
    return front


def predicted_front(errors: Errors, time: Time) -> list[Policy]:
    """For every speed the policy with the smallest predicted error, among all combinations of cells.

    Time and squared error are sums over cells, so this is a knapsack: solved exactly on a grid of BINS times.
    """
    options = _options(errors, time)
    fastest = sum(min(seconds for seconds, _, _ in choices) for choices in options)
    slowest = sum(max(seconds for seconds, _, _ in choices) for choices in options)
    if slowest <= fastest:
        return [errors.base]
    taken = _fill(options, (BINS - 1) / (slowest - fastest))
    policies = [errors.applied(cells) for cells in taken]
    return pareto(policies, time, errors.predict)


Option = tuple[float, float, Cell | None]
"""Time and squared error that a choice adds to the base; None is the base's own precision."""


def _options(errors: Errors, time: Time) -> list[list[Option]]:
    """The choices of every group and range of blocks."""
    places: dict[tuple[str, str], list[Option]] = defaultdict(lambda: [(0.0, 0.0, None)])
    start = time(errors.base)
    for cell, delta in zip(errors.cells, errors.delta, strict=True):
        places[cell.group, cell.span].append((time(errors.applied([cell])) - start, float(delta), cell))
    return list(places.values())


def _fill(options: Sequence[list[Option]], scale: float) -> list[list[Cell]]:
    """The cells of the smallest error at the numbers of time bins where more time helps."""
    best = np.full(BINS, np.inf)
    best[0] = 0.0
    chosen = []
    for choices in options:
        quickest = min(seconds for seconds, _, _ in choices)
        bins = [int((seconds - quickest) * scale) for seconds, _, _ in choices]
        totals = np.array([_shifted(best, shift) + delta for shift, (_, delta, _) in zip(bins, choices, strict=True)])
        picked = totals.argmin(axis=0)
        best = totals.min(axis=0)
        chosen.append((picked, bins))
    ahead = np.minimum.accumulate(np.concatenate([[np.inf], best[:-1]]))
    slots = np.flatnonzero(best < ahead)
    picked = slots[np.linspace(0, len(slots) - 1, min(len(slots), POINTS)).round().astype(int)]
    return [_trace(options, chosen, int(slot)) for slot in picked]


def _shifted(best: np.ndarray, bins: int) -> np.ndarray:
    moved = np.full_like(best, np.inf)
    moved[bins:] = best[: len(best) - bins]
    return moved


def _trace(options: Sequence[list[Option]], chosen: list[tuple[np.ndarray, list[int]]], slot: int) -> list[Cell]:
    cells = []
    for choices, (picked, bins) in zip(reversed(options), reversed(chosen), strict=True):
        choice = int(picked[slot])
        slot -= bins[choice]
        if (cell := choices[choice][2]) is not None:
            cells.append(cell)
    return cells
