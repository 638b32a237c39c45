"""The squared error of every policy from a few measured ones: errors of layers add up in their squares.

Derived from the paper's Table 4, which this predicts: ten groups and three ranges of blocks are enough to rank all.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sana_quant.groups import GROUPS, block_ranges
from sana_quant.policy import Policy
from sana_quant.search.edits import changed

SPLIT_DOUBT = 0.5
"""How far a cell's share of its group may be off, relative to the share: groups differ in where they are sensitive."""

MEASURE_DOUBT = 0.02
"""Of a measured squared error, relative to it: what adding squares leaves out, and noise."""


@dataclass(frozen=True)
class Cell:
    """One group in one named range of blocks, put into another precision than that of the base."""

    group: str
    span: str
    precision: str


@dataclass(frozen=True)
class Sweep:
    """Measured RelRMSE of the base, and of it with one group, or one range of blocks, in another precision."""

    base: float
    groups: Mapping[tuple[str, str], float]
    spans: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Errors:
    """What each cell adds to the squared RelRMSE of `base`, one value of `delta` per cell, for any number of blocks."""

    base: Policy
    squared: float
    cells: tuple[Cell, ...]
    delta: np.ndarray

    def predict(self, policy: Policy) -> float:
        """RelRMSE of any policy, also of one whose choices end inside a range of blocks."""
        return math.sqrt(max(self.squared + float(self.weights(policy) @ self.delta), 0.0))

    def weights(self, policy: Policy) -> np.ndarray:
        """Of every cell the share of its blocks that the policy puts into the cell's precision."""
        spans = block_ranges(len(next(iter(policy.groups.values()))))
        counts = {
            (group, span): Counter(precisions[blocks.start : blocks.stop])
            for group, precisions in policy.groups.items()
            for span, blocks in spans.items()
        }
        return np.array([counts[c.group, c.span][c.precision] / len(spans[c.span]) for c in self.cells])

    def applied(self, cells: Iterable[Cell]) -> Policy:
        """The base with these cells changed."""
        policy = self.base
        spans = block_ranges(len(policy.groups[self.cells[0].group]))
        for cell in cells:
            policy = changed(policy, [cell.group], spans[cell.span], cell.precision)
        return policy

    def refitted(self, measured: Sequence[tuple[Policy, float]]) -> "Errors":
        """The most likely cells given measured policies, this estimate being what was believed before.

        Both are taken as Gaussian, so it is one linear solve; without measurements nothing changes.
        """
        rows = np.array([self.weights(policy) for policy, _ in measured]).reshape(len(measured), len(self.cells))
        squares = np.array([error**2 for _, error in measured])
        typical = np.abs(self.delta).mean()
        believed = (SPLIT_DOUBT * np.maximum(np.abs(self.delta), 0.1 * typical)) ** 2
        noise = np.diag((MEASURE_DOUBT * squares) ** 2)
        spread = believed[:, None] * rows.T
        surprise = squares - self.squared - rows @ self.delta
        return replace(self, delta=self.delta + spread @ np.linalg.solve(rows @ spread + noise, surprise))


def from_sweep(base: Policy, sweep: Sweep) -> Errors:
    """A group's error is split over the ranges of blocks in proportion to the errors of the whole ranges."""
    squared = sweep.base**2
    depth = len(base.groups["SA-Q"])
    kinds = {precision for _, precision in sweep.groups}
    shares = {precision: _shares(sweep, precision, depth) for precision in kinds}
    scales = {precision: _scale(sweep, precision) for precision in kinds}
    cells = {
        Cell(group, span, precision): scales[precision] * (error**2 - squared) * share
        for (group, precision), error in sweep.groups.items()
        for span, share in shares[precision].items()
    }
    return Errors(base, squared, tuple(cells), np.array(list(cells.values())))


def _scale(sweep: Sweep, precision: str) -> float:
    """Below 1 where all groups in a wider format would take away more than there is; without error is the most."""
    squared = sweep.base**2
    change = sum(error**2 - squared for (_, kind), error in sweep.groups.items() if kind == precision)
    return squared / -change if change < -squared else 1.0


def _shares(sweep: Sweep, precision: str, depth: int) -> dict[str, float]:
    """Of each range, how much of an error it causes; by its number of blocks where no error was seen."""
    spans = block_ranges(depth)
    rises = np.array([sweep.spans[span, precision] ** 2 - sweep.base**2 for span in spans])
    # A narrower format adds error and a wider one takes some away; a range against that trend has no part in it.
    rises = np.maximum(rises * np.sign(rises.sum()), 0.0)
    if not rises.any():
        rises = np.array([len(blocks) for blocks in spans.values()], dtype=float)
    return dict(zip(spans, (rises / rises.sum()).tolist(), strict=True))


def sweep_policies(base: Policy, precisions: Iterable[str]) -> dict[tuple[str, str], Policy]:
    """What has to be measured besides the base: (group or range of blocks, precision) and the policy."""
    depth = len(base.groups["SA-Q"])
    every, spans = range(depth), block_ranges(depth)
    policies: dict[tuple[str, str], Policy] = {}
    for precision in precisions:
        policies |= {(group, precision): changed(base, [group], every, precision) for group in GROUPS}
        policies |= {(span, precision): changed(base, GROUPS, blocks, precision) for span, blocks in spans.items()}
    return policies
