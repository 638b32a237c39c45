"""Steps in processes of their own: what comes back, and what a step that dies looks like."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sana_build.stage_process import run_step
from sana_runtime.errors import BuildError, CheckpointError, choose

MEGABYTE = 1_000_000


def hold(megabytes: int) -> int:
    data = b"x" * (megabytes * MEGABYTE)
    return len(data)


def refuse() -> None:
    raise CheckpointError("the transformer is damaged")


def fill_disk() -> None:
    Path("/dev/full").write_bytes(b"x" * MEGABYTE)


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_step_returns_its_value_its_time_and_its_own_memory(tmp_path: Path) -> None:
    small, large = (run_step("hold", tmp_path / "log", hold, size) for size in (1, 200))
    assert (small.value, large.value) == (MEGABYTE, 200 * MEGABYTE)
    assert 190 * MEGABYTE < large.peak - small.peak < 250 * MEGABYTE
    assert small.seconds > 0


def test_a_refusal_comes_back_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^the transformer is damaged$"):
        run_step("load", tmp_path / "log", refuse)


def test_any_other_failure_names_the_step_and_its_log(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"export vae failed: ZeroDivisionError.*\(log: .*vae\.log\)"):
        run_step("export vae", tmp_path / "vae.log", divmod, 1, 0)
    assert "Traceback" in (tmp_path / "vae.log").read_text()


def test_a_full_disk_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^the disk is full"):
        run_step("export", tmp_path / "log", fill_disk)


def test_a_crash_of_a_library_is_one_failed_step(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="compile crashed with SIGABRT"):
        run_step("compile", tmp_path / "log", os.abort)
    with pytest.raises(BuildError, match="compile was killed, most likely because memory ran out"):
        run_step("compile", tmp_path / "log", die, signal.SIGKILL)
    with pytest.raises(BuildError, match="compile ended with status 3"):
        run_step("compile", tmp_path / "log", os._exit, 3)


def test_an_error_of_ours_keeps_its_list_of_names(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="unknown --gpu 'a': choose one of b"):
        run_step("choose", tmp_path / "log", choose, "--gpu", "a", {"b": 1})


def test_a_killed_build_takes_its_step_along(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from sana_build.stage_process import run_step
run_step("sleep", Path({str(tmp_path / "log")!r}), time.sleep, 600)
"""
    paths = os.pathsep.join(path for path in sys.path if path)
    build = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths})
    children = Path(f"/proc/{build.pid}/task/{build.pid}/children")
    step = _soon(lambda: children.read_text().split())[0]
    # The child asks to die with its parent as the first thing it does after it has read its call.
    _soon(lambda: "sana_build.stage_process" in Path(f"/proc/{step}/cmdline").read_text())
    time.sleep(1.0)
    build.kill()
    build.wait()
    _soon(lambda: not Path(f"/proc/{step}").exists() or "(zombie)" in Path(f"/proc/{step}/status").read_text())


def _soon(check):  # type: ignore[no-untyped-def]
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if value := check():
            return value
        time.sleep(0.05)
    raise AssertionError("did not happen within 30 s")
