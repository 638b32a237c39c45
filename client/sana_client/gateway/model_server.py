"""The model server of `sana-gateway up`: `sana-build serve`, which also restarts it, as a child of this process."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sana_client.errors import ServerLost, UsageError
from sana_client.gateway.folder import OwnFolder

COMMAND = "sana-build"
PORTS = ("http", "grpc", "metrics")
STOP_SECONDS = 40.0
PR_SET_PDEATHSIG = 1


@contextmanager
def model_server(repository: Path, ports: Mapping[str, int], folder: OwnFolder) -> Iterator[None]:
    """A model server over `repository`, ready for streams; it ends with the block, and leaves nothing but in `folder`.

    When it gives up by itself, this process is asked to stop. Raises UsageError when sana-build is not installed, and
    ServerLost when the server does not start, or gave up.
    """
    options = [f"--{name}={port}" for name, port in ports.items()]
    child = subprocess.Popen(
        [_command(), "serve", str(repository), *options],
        stdout=subprocess.PIPE,
        text=True,
        # A Ctrl-C at the terminal must end the live sessions first, and the server after them.
        start_new_session=True,
        preexec_fn=_end_with_parent,
        env={**os.environ, "TMPDIR": str(folder.path)},
        pass_fds=[folder.keeper],
    )
    stopping = threading.Event()
    try:
        _wait_ready(child)
        threading.Thread(target=_pass_on, args=(child, stopping), daemon=True).start()
        yield
        if child.poll() is not None:
            raise ServerLost("the model server gave up: its last lines above say why")
    finally:
        stopping.set()
        child.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)
        child.kill()


def _end_with_parent() -> None:
    """Have the kernel stop this process in order when the one that started it is gone, however that went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _command() -> str:
    beside = Path(sys.executable).with_name(COMMAND)
    found = str(beside) if beside.exists() else shutil.which(COMMAND)
    if found is None:
        raise UsageError(f"{COMMAND} is not installed here: install sana-build[serve], or use sana-gateway serve")
    return found


def free_ports() -> dict[str, int]:
    """Ports for a model server that nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {name: taken.getsockname()[1] for name, taken in zip(PORTS, sockets, strict=True)}


def _wait_ready(child: "subprocess.Popen[str]") -> None:
    assert child.stdout
    for line in child.stdout:
        print(line, end="", file=sys.stderr)
        if line.startswith("ready"):
            return
    raise ServerLost("the model server did not start: its last lines above say why")


def _pass_on(child: "subprocess.Popen[str]", stopping: threading.Event) -> None:
    assert child.stdout
    for line in child.stdout:
        print(line, end="", file=sys.stderr)
    child.wait()
    if not stopping.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
