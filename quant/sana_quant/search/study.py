"""What was measured in a search, by whom it was proposed, and what it was expected to be."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sana_quant.policy import Policy
from sana_quant.search.edits import signature
from sana_quant.search.front import Time, pareto


@dataclass(frozen=True)
class Score:
    """How far a policy's streams are from the reference: RelRMSE and perceptual distance, one value per stream."""

    rmse: tuple[float, ...]
    perceptual: tuple[float, ...]

    @property
    def mean(self) -> float:
        """RelRMSE as the paper's tables have it, averaged over streams."""
        return float(np.mean(self.rmse))


@dataclass(frozen=True)
class Trial:
    """A measured policy, the stage of the search that asked for it, and the RelRMSE it expected, if any."""

    policy: Policy
    stage: str
    score: Score
    predicted: float | None = None

    @property
    def rmse(self) -> float:
        return self.score.mean


Measure = Callable[[Sequence[Policy]], list[Score]]
"""Measures policies, in any order and on any number of devices, and returns their scores in the order asked."""


@dataclass
class Study:
    """Measures every policy once. `time` is that of one evaluation, `full` its value without any quantisation.

    What takes longer than `slowest` is never chosen: the cost of a policy that quantises nothing would be 0.
    """

    measure: Measure
    time: Time
    full: float
    slowest: float
    trials: dict[str, Trial] = field(default_factory=dict)

    def run(
        self, stage: str, policies: Iterable[Policy], predict: Callable[[Policy], float] | None = None
    ) -> list[Trial]:
        """The trials of these policies, in their order; known ones are not measured again."""
        wanted = {signature(policy): policy for policy in policies}
        new = {key: policy for key, policy in wanted.items() if key not in self.trials}
        for (key, policy), score in zip(new.items(), self.measure(list(new.values())), strict=True):
            self.trials[key] = Trial(policy, stage, score, predict(policy) if predict else None)
        return [self.trials[key] for key in wanted]

    def knows(self, policy: Policy) -> bool:
        return signature(policy) in self.trials

    def measured(self) -> list[tuple[Policy, float]]:
        return [(trial.policy, trial.rmse) for trial in self.trials.values()]

    def speedup(self, policy: Policy) -> float:
        return self.full / self.time(policy)

    def cost(self, policy: Policy, rmse: float) -> float:
        """The paper's scalar, RelRMSE over speed-up: lower is better."""
        return rmse / self.speedup(policy)

    def cheapest(self) -> Trial:
        """The trial of the lowest cost among those that may be chosen."""
        return min(self.within(self.slowest), key=lambda trial: self.cost(trial.policy, trial.rmse))

    def best_within(self, time: float) -> Trial:
        """The trial of the smallest error among those that take no longer than `time`."""
        return min(self.within(time), key=lambda trial: trial.rmse)

    def within(self, time: float) -> list[Trial]:
        return [trial for trial in self.trials.values() if self.time(trial.policy) <= time]

    def front(self, time: Time | None = None) -> list[Trial]:
        """The trials that no other beats in time and error, the fastest first."""
        of = time or self.time
        return pareto(self.trials.values(), lambda trial: of(trial.policy), lambda trial: trial.rmse)


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference over streams, and the standard error of that mean."""

    mean: float
    error: float


def difference(one: Sequence[float], other: Sequence[float]) -> Difference:
    """`one` minus `other`, stream by stream: the same noise, clips and prompts, so most of the spread cancels."""
    gaps = np.subtract(one, other)
    error = float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else float("nan")
    return Difference(float(gaps.mean()), error)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, ties sharing their mean rank."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def correlation_interval(correlation: float, count: int) -> tuple[float, float]:
    """Where Spearman's correlation of `count` pairs lies with 95 % (Fisher's z, variance of Bonett and Wright)."""
    if abs(correlation) >= 1:
        return correlation, correlation
    if count <= 3:
        return -1.0, 1.0
    reach = 1.96 * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    low, high = np.tanh(np.arctanh(correlation) + np.array([-reach, reach]))
    return float(low), float(high)


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]
