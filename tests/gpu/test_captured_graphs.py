"""Functions as graphs: kernels are looked for as long as some are missing."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
from recorded import record

from sana_gpu import graphs


def test_kernels_are_looked_for_until_a_graph_lacks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = iter([["rows"], []])
    ran = dict.fromkeys("abc", 0)

    @contextmanager
    def compiled_ahead() -> Iterator[list[str]]:
        yield next(lacking)

    def run(key: str) -> None:
        ran[key] += 1

    record([], monkeypatch)
    monkeypatch.setattr(graphs, "compiled_ahead", compiled_ahead)
    found = graphs.Graphs(SimpleNamespace(device="cuda", working=nullcontext))  # type: ignore[arg-type]
    for key in ran:
        found.get(key, lambda key=key: run(key))  # type: ignore[misc]
    assert ran == {"a": 3, "b": 3, "c": 2}
