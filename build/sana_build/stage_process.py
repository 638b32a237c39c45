"""Steps of a build in processes of their own: a library that crashes ends one step, and its memory is given back."""

import ctypes
import errno
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_runtime.errors import BuildError, SanaError

MEMORY = Path("/proc/self/status")
PEAK = "VmHWM:"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Finished:
    """What a step returned, how long it took, and the most memory its process held, in bytes."""

    value: Any
    seconds: float
    peak: int


def run_step(name: str, log: Path, function: Callable[..., Any], *arguments: Any) -> Finished:
    """Call an importable `function` in a fresh Python process whose output goes to `log`.

    A refusal of ours is raised here as it was raised there; any other end is a BuildError with the step's `name` and
    the log.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sana-step-") as folder:
        call, answer = Path(folder) / "call", Path(folder) / "answer"
        call.write_bytes(pickle.dumps((function, arguments)))
        status = _wait([sys.executable, "-m", "sana_build.stage_process", str(call), str(answer)], log)
        if not answer.exists():
            raise BuildError(f"{name} {_ending(status)} (log: {log})")
        value, error, peak = pickle.loads(answer.read_bytes())
    if isinstance(error, SanaError):
        raise error
    if error:
        raise BuildError(f"{name} failed: {error} (log: {log})")
    return Finished(value, time.monotonic() - started, peak)


def _wait(command: list[str], log: Path) -> int:
    """Run to the end; a build that is stopped takes its step along."""
    paths = os.pathsep.join(path for path in sys.path if path)
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": paths})
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, most likely because memory ran out: close other programs, or build on a larger machine"
    if status < 0:
        return f"crashed with {signal.Signals(-status).name}: this is a fault of a library it uses"
    return f"ended with status {status} and no answer"


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith(PEAK))
    return int(line.split()[1]) * 1024


def no_space(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def main(call: Path, answer: Path) -> None:
    """The child's side: call the function and write (value, error, peak memory) to `answer`."""
    # A build that is killed cannot stop its step, which would go on writing into a folder that is no longer locked.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    function, arguments = pickle.loads(call.read_bytes())
    value: Any = None
    error: SanaError | str | None = None
    try:
        value = function(*arguments)
    except SanaError as refusal:
        error = refusal
    except Exception as failure:
        traceback.print_exc()
        error = BuildError(disk_full(failure)) if no_space(failure) else f"{type(failure).__name__}: {failure}"
    answer.write_bytes(pickle.dumps((value, error, peak_memory())))


def disk_full(error: BaseException) -> str:
    where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return f"the disk is full{where}: free some space, or build to another disk; what is finished is kept"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
