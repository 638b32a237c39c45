import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / "sana-build"), *arguments], capture_output=True, text=True, check=False)


def test_help_teaches_and_answers_at_once() -> None:
    run("--help")
    started = time.perf_counter()
    shown = run("--help")
    seconds = time.perf_counter() - started
    assert shown.returncode == 0
    assert "sana-build serve" in shown.stdout
    assert seconds < 0.5


@pytest.mark.parametrize("command", ["plan", "verify", "serve", "doctor", "calibrate", "search", "write-checkpoint"])
def test_every_command_has_help(command: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert "Usage" in shown.stdout


def test_a_refusal_is_one_sentence_and_a_failing_exit(tmp_path: Path) -> None:
    refused = run("--model", "sana", "--output", str(tmp_path / "r"))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "unknown --model 'sana'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_build_without_a_model_says_what_is_missing() -> None:
    refused = run("--output", "somewhere")
    assert refused.returncode == 2
    assert "--model" in refused.stderr
