"""Folders under construction: complete or absent, one writer at a time."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sana_build.folders import alone_in, under_construction
from sana_runtime.errors import ConfigError

PROCESSES = multiprocessing.get_context("spawn")


def build_until_told(final: Path, pipe: Connection) -> None:
    with under_construction(final) as folder:
        (folder / "half").write_text("half")
        pipe.send("building")
        pipe.recv()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with under_construction(tmp_path / "repo") as folder:
        (folder / "engine").write_text("new")
        assert not (tmp_path / "repo").exists()
    assert (tmp_path / "repo" / "engine").read_text() == "new"
    assert names(tmp_path) == ["repo"]


def test_a_failure_leaves_the_last_one_in_place(tmp_path: Path) -> None:
    with under_construction(tmp_path / "repo") as folder:
        (folder / "engine").write_text("old")
    with pytest.raises(ZeroDivisionError), under_construction(tmp_path / "repo") as folder:
        (folder / "engine").write_text(str(1 / 0))
    assert (tmp_path / "repo" / "engine").read_text() == "old"
    assert names(tmp_path) == ["repo"]


def test_two_builds_into_one_folder_are_refused_until_the_first_ends(tmp_path: Path) -> None:
    with under_construction(tmp_path / "repo"):
        with (
            pytest.raises(ConfigError, match=r"another build is writing .*repo"),
            under_construction(tmp_path / "repo"),
        ):
            pass
        with under_construction(tmp_path / "other"):
            pass
    with under_construction(tmp_path / "repo"):
        pass


def test_a_killed_build_leaves_no_lock_and_its_half_is_cleared(tmp_path: Path) -> None:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=build_until_told, args=(tmp_path / "repo", theirs))
    process.start()
    assert ours.recv() == "building"
    with pytest.raises(ConfigError, match="another build"), under_construction(tmp_path / "repo"):
        pass
    process.kill()
    process.join()
    with under_construction(tmp_path / "repo") as folder:
        assert list(folder.iterdir()) == []


def hold_until_told(folder: Path, pipe: Connection) -> None:
    with alone_in(folder, lambda: None):
        pipe.send("holding")
        pipe.recv()
        (folder / "done").touch()


def test_whoever_waits_goes_on_after_the_other(tmp_path: Path) -> None:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold_until_told, args=(tmp_path / "cache", theirs))
    process.start()
    assert ours.recv() == "holding"
    # The other goes on as soon as it knows that we wait.
    with alone_in(tmp_path / "cache", lambda: ours.send("finish")):
        assert (tmp_path / "cache" / "done").exists()
    process.join()
    with alone_in(tmp_path / "cache", lambda: pytest.fail("nobody is there")):
        pass


def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be written"), under_construction(Path("/proc/sana/repo")):
        pass
