from pathlib import Path

import pytest

from sana_quant.search.store import Store
from sana_quant.search.study import Score
from sana_runtime.errors import ConfigError

ONE, TWO = Score((0.25, 0.5), ()), Score((0.125, 1.0), (0.01, 0.02))


def stored(path: Path) -> Store:
    store = Store(path)
    store.add("one", "all fp8", ONE, 1.5)
    store.add("two", "SA-Q nvfp4", TWO, 2.5)
    return store


def test_scores_come_back(tmp_path: Path) -> None:
    stored(tmp_path / "trials.jsonl").close()
    assert Store(tmp_path / "trials.jsonl").scores == {"one": ONE, "two": TWO}


def test_half_a_line_of_a_killed_search_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    stored(path).close()
    path.write_bytes(path.read_bytes()[:-20])
    store = Store(path)
    assert store.scores == {"one": ONE}
    store.add("three", "", TWO, 0.0)
    store.close()
    assert Store(path).scores == {"one": ONE, "three": TWO}


def test_a_score_is_on_disk_as_soon_as_it_was_added(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    store = stored(path)
    assert path.read_text().count("\n") == 2
    store.close()


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    store = stored(tmp_path / "trials.jsonl")
    with pytest.raises(ConfigError, match="another search is writing"):
        Store(tmp_path / "trials.jsonl")
    store.close()
    Store(tmp_path / "trials.jsonl").close()


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', '{"key": "a", "rmse": 3, "perceptual": []}'])
def test_a_line_that_is_no_score_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trials.jsonl"
    stored(path).close()
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match="line 3, is no score"):
        Store(path)


def test_a_folder_that_is_not_there_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        Store(tmp_path / "missing" / "trials.jsonl")
