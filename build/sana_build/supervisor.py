"""`serve`: keep the bundled server running over a repository, and restart it whole when a part of it dies."""

import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sana_build.repository import ENSEMBLE, check_repository
from sana_build.server import Ports, TritonServer
from sana_runtime.errors import ServerError
from sana_runtime.manifest import Manifest

RESTARTS = 3
WINDOW_SECONDS = 300.0
CHECK_SECONDS = 1.0
DRAIN_SECONDS = 20.0
CANARY_SECONDS = 60.0
CANARY_ID = 2**63 - 1

OnEvent = Callable[[str], None]


def serve(repository: Path, ports: Ports, on_event: OnEvent, log: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT, reporting by `on_event`; `log` takes the server's own output.

    Raises RepositoryError for an edited repository, ConfigError for a taken port or a missing server, and ServerError
    for a server that does not start or keeps dying.
    """
    manifest = check_repository(repository)
    log = log or Path(tempfile.gettempdir()) / f"sana-triton-{ports.grpc}.log"
    restarts: deque[float] = deque(maxlen=RESTARTS)
    with _stop_signal() as stop:
        while True:
            on_event(f"starting the server over {repository}, log in {log}")
            server = TritonServer(repository, ports, log, drain=DRAIN_SECONDS, cancel=stop, gpu=manifest.for_gpu)
            cause = _serve_once(server, manifest, stop, on_event)
            if stop.is_set():
                break
            on_event(f"{cause}: the server is restarted, and every stream has to begin again")
            _allow_restart(restarts, cause)
        on_event("stopped")


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set while the block runs."""
    stop = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _serve_once(server: TritonServer, manifest: Manifest, stop: threading.Event, on_event: OnEvent) -> str:
    """One life of the server, from start to the reason of its end; nothing of it is left afterwards."""
    try:
        server.start()
        canary(server.grpc_url, manifest)
        on_event(f"ready: {manifest.model}, {manifest.streams} streams at once, gRPC on {server.grpc_url}")
        cause = _watch(server, len(manifest.engines), stop)
        if stop.is_set():
            on_event(f"letting live streams finish, for at most {DRAIN_SECONDS:.0f} s")
            server.stop()
        return cause
    except ServerError:
        if stop.is_set():
            return "asked to stop"
        raise
    finally:
        # The streams of a half-dead server are lost anyway: nothing to wait for.
        server.kill()


def _watch(server: TritonServer, models: int, stop: threading.Event) -> str:
    """Block until something ends the life of the server of this many python models, and say what."""
    while not stop.wait(CHECK_SECONDS):
        if server.process is None or server.process.poll() is not None:
            return "the server process died"
        # The server goes on to report a model as ready whose Python process is gone, so the processes are counted.
        if (alive := len(server.stubs())) < models:
            return f"{models - alive} of {models} model processes died"
    return "asked to stop"


def _allow_restart(restarts: deque[float], cause: str) -> None:
    now = time.monotonic()
    if len(restarts) == RESTARTS and now - restarts[0] < WINDOW_SECONDS:
        raise ServerError(
            f"{cause} for the {RESTARTS + 1}th time within {WINDOW_SECONDS:.0f} s, giving up: "
            f"look at the log and at the memory of this machine"
        )
    restarts.append(now)


def canary(grpc_url: str, manifest: Manifest) -> None:
    """Open and close one stream through the whole ensemble; raises ServerError if it is not answered."""
    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    geometry = manifest.geometry
    shapes = {"frames": (1, 1, geometry.height, geometry.width, 3), "prompt": (1, 1)}
    inputs = [InferInput(name, shape, "UINT8") for name, shape in shapes.items()]
    for item in inputs:
        item.set_data_from_numpy(np.zeros(item.shape(), np.uint8))
    flags = {"sequence_id": CANARY_ID, "sequence_start": True, "sequence_end": True, "parameters": {"close": True}}
    try:
        with InferenceServerClient(grpc_url) as client:
            client.infer(ENSEMBLE, inputs, client_timeout=CANARY_SECONDS, **flags)
    except InferenceServerException as error:
        raise ServerError(f"the server is up but does not answer a trial stream: {error.message()}") from error
