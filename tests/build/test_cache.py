"""The cache of finished folders, and what makes a key."""

import os
from pathlib import Path

import pytest

from sana_build.cache import Cache, default_cache, make_key, place, source_hash


def test_an_entry_is_there_when_it_is_complete(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(ZeroDivisionError), cache.make("engines", "key") as folder:
        (folder / "half").write_text(str(1 / 0))
    assert cache.find("engines", "key") is None
    with cache.make("engines", "key") as folder:
        (folder / "whole").touch()
        assert cache.find("engines", "key") is None
    assert cache.find("engines", "key") == tmp_path / "engines" / "key"
    assert cache.find("graphs", "key") is None
    cache.drop("engines", "key")
    assert cache.find("engines", "key") is None


def test_what_nobody_will_ask_for_is_dropped(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("ours", "theirs"):
        with cache.make("graphs", key) as folder:
            (folder / "graph").touch()
    (tmp_path / "graphs" / ".killed.partial").mkdir()
    cache.keep_only("graphs", ["ours"])
    assert [path.name for path in (tmp_path / "graphs").iterdir()] == ["ours"]
    cache.keep_only("engines", [])


def test_a_key_changes_with_every_value_and_not_with_their_order() -> None:
    assert make_key(a=1, b=[2, 3]) == make_key(b=[2, 3], a=1)
    assert len({make_key(a=1), make_key(a=2), make_key(b=1), make_key(a=[1])}) == 4


def test_a_program_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = set()
    for number, text in enumerate(("one = 1", "one = 2")):
        package = tmp_path / f"program_{number}"
        (package / "part").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "part" / "module.py").write_text(text)
        hashes.add(source_hash(package.name))
    assert len(hashes) == 2
    assert source_hash("sana_build.cache") != source_hash("sana_build.folders")


def test_a_file_is_placed_as_a_link_and_as_a_copy_where_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine").write_text("engine")
    place(tmp_path / "engine", tmp_path / "a" / "engine")
    assert (tmp_path / "a" / "engine").samefile(tmp_path / "engine")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    place(tmp_path / "engine", tmp_path / "b" / "engine")
    assert (tmp_path / "b" / "engine").read_text() == "engine"
    assert not (tmp_path / "b" / "engine").samefile(tmp_path / "engine")


def test_the_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast/disk")
    assert default_cache() == Path("/fast/disk/sana-build")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "sana-build"
