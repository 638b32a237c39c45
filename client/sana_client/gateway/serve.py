"""Running a gateway: its socket, its folder, and an end that lets live sessions finish."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import uvicorn
from starlette.types import ASGIApp

from sana_client.errors import UsageError
from sana_client.gateway.alive import LOOK_SECONDS
from sana_client.gateway.app import make_app
from sana_client.gateway.hub import Hub, log, log_event
from sana_client.gateway.keepalive import LivelySocket
from sana_client.gateway.settings import Settings

UNANSWERED_MS = 15000
DRAIN_SECONDS = 20.0
CONNECTIONS = 512


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises UsageError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"{host}:{port} cannot be opened ({error.strerror}): choose another port") from None
    # A peer that stops reading would otherwise keep its connection, and what is buffered for it, for ever.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MS)
    return listening


class Server(uvicorn.Server):
    """Ends on the first signal, after the live sessions; on a second one at once."""

    def __init__(self, app: ASGIApp, hub: Hub) -> None:
        settings = hub.settings
        super().__init__(
            uvicorn.Config(
                app,
                ws_max_size=settings.message_bytes,
                ws=LivelySocket,
                ws_ping_interval=LOOK_SECONDS,
                # Frames are compressed already.
                ws_per_message_deflate=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=5,
                access_log=False,
                log_config=None,
                lifespan="on",
            )
        )
        self._hub = hub
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: object) -> None:
        if self._draining or self.should_exit:
            self.should_exit = self.force_exit = True
            return
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        live = sum(session.running is not None for session in self._hub.sessions.values())
        log_event("stopping", live=live, seconds=DRAIN_SECONDS if live else 0, hint="a second signal stops at once")
        await self._hub.drain(DRAIN_SECONDS)
        self.should_exit = True


def run(settings: Settings, model_server: AbstractContextManager[object], ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, inside `model_server`; `ready` gets the page's address.

    Whatever is wrong with the settings is raised as UsageError before the model server starts.
    """
    app, hub = make_app(settings)
    listening = listen(settings.host, settings.port)
    host, port = listening.getsockname()[:2]
    with model_server:
        # What is there by now stays, and looking through it again and again would hold every session up for a moment.
        gc.collect()
        gc.freeze()
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        asyncio.run(Server(app, hub).serve([listening]))


def log_to_stderr() -> None:
    """One line of JSON per event on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
