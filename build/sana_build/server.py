"""One process of the bundled Triton server: start it over a built repository, wait for it, stop it cleanly."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sana_build.bundle import STUB, Bundle, find_bundle
from sana_runtime.errors import ConfigError, ServerError

if TYPE_CHECKING:
    import psutil

HOST = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
NOISE = re.compile(r"CudaDriverHelper|unable to create stream|NVML|DCGM|pinned memory|CUDA memory pool|conflict")
TELLING = re.compile(r"^E\d{4} |error:|Error|Traceback|failed to load|Python model file not found")
HANGS = "Python model file not found"


@dataclass(frozen=True)
class Ports:
    """TCP ports of the three endpoints, all on the loopback address."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> "Ports":
        """Three ports that nobody listens on at this moment."""
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(3)]
            return cls(*(taken.getsockname()[1] for taken in sockets))

    def check(self) -> None:
        """Raise ConfigError naming the first port that is taken."""
        for name, port in vars(self).items():
            try:
                socket.create_server((HOST, port)).close()
            except OSError as error:
                reason = os.strerror(error.errno or 0).lower()
                raise ConfigError(f"{name} port {port} cannot be opened ({reason}): choose another one") from error


class TritonServer(AbstractContextManager["TritonServer"]):
    """The bundled server over `repository`, its output in `log`.

    Leaves no process, file or shared memory behind, but for the empty file by which stages take turns on a GPU.

    `deadline` bounds the loading of all models, `drain` how long live streams may run on after a stop, both in seconds;
    setting `cancel` ends the wait for a server that is still loading. Only with `gpu` the models see the GPU.
    """

    def __init__(
        self,
        repository: Path,
        ports: Ports,
        log: Path,
        *,
        deadline: float = 600.0,
        drain: float = 5.0,
        cancel: threading.Event | None = None,
        gpu: bool = False,
    ) -> None:
        self.repository, self.ports, self.log = repository, ports, log
        self.deadline, self.drain, self.gpu = deadline, drain, gpu
        self._cancel = cancel or threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.region = ""
        self._log_start = 0
        self._runtime: tempfile.TemporaryDirectory[str] | None = None

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"http://{HOST}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until every model is ready; raises ConfigError or ServerError and leaves nothing running."""
        bundle = find_bundle()
        self.ports.check()
        self._runtime = tempfile.TemporaryDirectory(prefix="sana-triton-")
        self.region = Path(self._runtime.name).name
        try:
            with self.log.open("ab") as log:
                # A restart must not erase the reason for it, so the log grows and is read from here on.
                self._log_start = log.tell()
                self.process = subprocess.Popen(
                    self._command(bundle, Path(self._runtime.name)),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(bundle, self.gpu),
                    # A Ctrl-C at the terminal must reach the supervisor alone, which then drains the streams.
                    start_new_session=True,
                )
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def _command(self, bundle: Bundle, runtime: Path) -> list[str]:
        return [
            str(bundle.server),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={bundle.make_backends(runtime)}",
            f"--cache-directory={bundle.caches}",
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--load-model=*",
            *(f"--{name}-address={HOST}" for name in ("http", "grpc", "metrics")),
            *(f"--{name}-port={port}" for name, port in vars(self.ports).items()),
            f"--backend-config=python,shm-region-prefix-name={self.region}",
            "--backend-config=python,stub-timeout-seconds=600",
            "--backend-config=python,shm-default-byte-size=16777216",
            f"--exit-timeout-secs={int(self.drain)}",
        ]

    def _wait_ready(self) -> None:
        assert self.process
        until = time.monotonic() + self.deadline
        while not self.ready():
            if (status := self.process.poll()) is not None:
                raise ServerError(f"the Triton server exited with status {status} while loading: {self._reason()}")
            if HANGS in self._text():
                raise ServerError(f"the Triton server found a model folder without 1/model.py: {self._reason()}")
            if time.monotonic() > until:
                raise ServerError(f"the Triton server was not ready after {self.deadline:.0f} s: {self._reason()}")
            if self._cancel.wait(0.1):
                raise ServerError("the Triton server was stopped while it was loading")

    def ready(self) -> bool:
        """Whether the server says that all its models are loaded (it opens the port only then)."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stubs(self) -> list["psutil.Process"]:
        """The live Python processes of the server, one per model instance."""
        import psutil

        if self.process is None:
            return []
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if child.name()[:15] == STUB[:15] and child.status() != "zombie"]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """Let live streams end within `drain` seconds, then unload; a server that does not exit is killed."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            # A client that keeps its gRPC stream open can hold the server back even after its own time limit.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self.drain + 3)
        self.kill()

    def kill(self) -> None:
        """End the whole process group at once and remove what it leaves: runtime directory and shared memory."""
        if self.process:
            # After a clean stop there is nobody left in the group.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        if self._runtime:
            for region in SHARED_MEMORY.glob(f"{self.region}*"):
                region.unlink(missing_ok=True)
            self._runtime.cleanup()
            self._runtime = None

    def _text(self) -> str:
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def _reason(self) -> str:
        """The last lines of the log that tell why, without what every machine lacking a GPU prints."""
        lines = [line for line in self._text().splitlines() if TELLING.search(line) and not NOISE.search(line)]
        return " | ".join(lines[-6:] or self._text().splitlines()[-3:]) + f" (whole log: {self.log})"


def _environment(bundle: Bundle, gpu: bool) -> dict[str, str]:
    """The parent's environment, with the stub's Python pinned to the running one, and no GPU in sight unless `gpu`."""
    dropped = {"PYTHONPATH", "PYTHONHOME"}
    hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    return {name: value for name, value in os.environ.items() if name not in dropped} | {
        **hidden,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, bundle.libraries)),
        # A byte code cache written beside model.py would be a file that the manifest does not know.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
