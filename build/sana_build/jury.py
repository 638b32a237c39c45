"""Measures policies on every device at once, and keeps what was measured: a stopped search goes on where it was."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sana_build import search_workers
from sana_build.judge import Finding, Setting
from sana_quant.calibration import Calibration
from sana_quant.policy import Policy
from sana_quant.scores import perceptual
from sana_quant.search.edits import short, signature
from sana_quant.search.store import Store
from sana_quant.search.study import Score
from sana_runtime.errors import BuildError

Done = Callable[[str], object]
"""Told of every policy as soon as its score is there."""


class Jury:
    """The workers of one setting, started when the first policy without a stored score comes."""

    def __init__(self, setting: Setting, workers: int, folder: Path, store: Store, done: Done) -> None:
        self.setting, self._workers, self._folder = setting, workers, folder
        self._store, self._done = store, done
        self._key = setting.key()
        self._pool: Executor | None = None

    def __enter__(self) -> "Jury":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def measure(self, policies: Sequence[Policy]) -> list[Score]:
        """The scores in the order asked, from the store where it has them."""
        keys = [f"{self._key}-{signature(policy)}" for policy in policies]
        waiting = {}
        for key, policy in zip(keys, policies, strict=True):
            if key in self._store.scores:
                self._done(_label(policy))
            else:
                waiting[self._submit(search_workers.score, policy)] = key, policy
        for future in as_completed(waiting):
            key, policy = waiting[future]
            score, seconds = _result(future)
            self._store.add(key, _label(policy), score, seconds)
            self._done(_label(policy))
        return [self._store.scores[key] for key in keys]

    def inspect(self, policies: Mapping[str, Policy | None]) -> dict[str, Finding]:
        """Scores with perceptual distances, and stills, by the given names; None stands for the reference itself."""
        metric = perceptual().name
        keys = {
            name: f"{self._key}-{metric}-{signature(policy) if policy else 'reference'}"
            for name, policy in policies.items()
        }
        asked = {key: policies[name] for name, key in keys.items()}
        known = {key for key in asked if key in self._store.scores and self._stills(key).exists()}
        waiting = {self._submit(search_workers.inspect, asked[key]): key for key in asked.keys() - known}
        for key in known:
            self._done(_label(asked[key]))
        for future in as_completed(waiting):
            key = waiting[future]
            finding, seconds = _result(future)
            _save(self._stills(key), finding.stills)
            self._store.add(key, _label(asked[key]), finding.score, seconds)
            self._done(_label(asked[key]))
        return {name: Finding(self._store.scores[key], np.load(self._stills(key))) for name, key in keys.items()}

    def sources(self) -> np.ndarray:
        """The last source frame of every stream, uint8 (B, H, W, 3)."""
        path = self._stills(f"{self._key}-source")
        if not path.exists():
            _save(path, _result(self._submit(search_workers.sources)))
        return np.load(path)

    def calibration(self) -> Calibration:
        """The largest inputs of every layer in the reference streams, kept in the folder."""
        path = self._folder / "calibration.json"
        kept = Calibration.read(path) if path.exists() else None
        if kept is None or kept.about.get("search") != self._key:
            seen = _result(self._submit(search_workers.calibration))
            kept = replace(seen, about={**seen.about, "search": self._key})
            kept.write(path)
        return kept

    def _stills(self, key: str) -> Path:
        return self._folder / "stills" / f"{key}.npy"

    def _submit(self, function: Callable, *arguments: Any) -> "Future[Any]":
        if self._pool is None:
            self._pool = search_workers.start(self.setting, self._workers)
        return self._pool.submit(function, *arguments)


def _result(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise BuildError(
            "a process that measures policies has died, as for want of memory: "
            "start again with fewer --workers, and the search goes on where it was"
        ) from error


def _save(path: Path, stills: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.save(path, stills)


def _label(policy: Policy | None) -> str:
    return short(policy, "fp8") if policy else "reference"
