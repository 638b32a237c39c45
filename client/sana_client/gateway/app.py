"""The gateway as an ASGI application: its routes, and what lives as long as it does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from sana_client.gateway import http, web
from sana_client.gateway.access import Access, read_tokens
from sana_client.gateway.hub import Hub
from sana_client.gateway.jobs import Jobs
from sana_client.gateway.realtime import realtime, watch
from sana_client.gateway.settings import Settings


async def _realtime(socket: WebSocket) -> None:
    await realtime(socket, web.hub(socket), web.caller(socket))


async def _watch(socket: WebSocket) -> None:
    await watch(socket, web.hub(socket), web.caller(socket))


def _routes() -> list[BaseRoute]:
    page: list[BaseRoute] = [Mount("/", StaticFiles(directory=folder, html=True))] if (folder := web_folder()) else []
    return [
        Route("/health", http.health),
        Route("/liveness", http.liveness),
        Route("/metrics", http.metrics),
        Route("/openapi.json", http.document),
        web.route("/v1/models", GET=http.models),
        web.route("/v1/models/{model}", GET=http.model),
        web.route("/v1/media", GET=http.media),
        web.route("/v1/uploads", POST=http.upload),
        web.route("/v1/videos", GET=http.list_videos, POST=http.create_video),
        web.route("/v1/videos/{video}", GET=http.show_video, DELETE=http.delete_video),
        web.route("/v1/videos/{video}/content", GET=http.video_content),
        web.route("/v1/realtime_video/webrtc", POST=http.webrtc),
        WebSocketRoute("/v1/realtime_video/generate", _realtime),
        WebSocketRoute("/v1/realtime_video/watch/{session_id}", _watch),
        *page,
    ]


def web_folder() -> Path | None:
    """Where the page is: in the package once it is installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next((folder for folder in (package / "web", package.parent / "web") if folder.is_dir()), None)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return web.failure(error.status_code, str(error.detail), error.headers)


def make_app(settings: Settings) -> tuple[ASGIApp, Hub]:
    """A gateway in front of the model server that `settings` name, and what its sessions share."""
    hub = Hub(settings)
    jobs = Jobs(hub)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await hub.refresh()
        watching = asyncio.create_task(hub.watch())
        try:
            yield
        finally:
            watching.cancel()
            await jobs.close()
            # Peers of WebRTC have no socket whose end would end their session.
            await asyncio.gather(*(session.close() for session in list(hub.sessions.values())))

    app = Starlette(routes=_routes(), lifespan=lifespan, exception_handlers={HTTPException: _refused})
    app.state.hub, app.state.jobs = hub, jobs
    callers = read_tokens(settings.tokens) if settings.tokens else {}
    guarded = web.Guard(app, Access(callers, time.monotonic))
    return _with_headers(guarded), hub


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Every answer with the headers that keep a browser from being talked into things."""
    extra = [(name.encode(), value.encode()) for name, value in web.HEADERS.items()]

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        await app(scope, receive, with_headers)

    return wrapped
