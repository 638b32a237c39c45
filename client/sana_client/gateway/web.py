"""What every HTTP answer has in common: who is asking, bounded bodies, and errors as JSON."""

import errno
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from sana_client.errors import ClientError, ServerLost
from sana_client.gateway.access import Access, Caller
from sana_client.gateway.hub import Hub
from sana_client.gateway.refusals import Denied, Full, InvalidRequest, NotFound, OverLimit

PROTECTED = ("/v1/", "/metrics")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
JSON_BYTES = 2**20
STATUS: Mapping[type[Exception], int] = {
    Denied: 401,
    NotFound: 404,
    OverLimit: 429,
    Full: 503,
    ServerLost: 503,
    ClientError: 400,
}
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "unavailable_error"}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def refusal(error: Exception) -> JSONResponse:
    """The answer to a request that raised `error`."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    return failure(status, str(error), {"www-authenticate": "Bearer"} if status == 401 else None)


def failure(status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    """An error in the form that clients of such servers know."""
    kind = KINDS.get(status, "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": status} | more}
    return JSONResponse(body, status, headers)


class Guard:
    """Lets a request through to `app` when its caller may come in; the page itself is for everybody."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not scope["path"].startswith(PROTECTED):
            await self.app(scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["caller"] = self.access.check(HTTPConnection(scope).headers)
        except ClientError as error:
            answer = refusal(error)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(answer)
            else:
                await answer(scope, receive, send)
            return
        await self.app(scope, receive, send)


def hub(connection: HTTPConnection) -> Hub:
    """What the gateway's sessions share."""
    found: Hub = connection.app.state.hub
    return found


def caller(connection: HTTPConnection) -> Caller:
    """Whom the guard let in."""
    found: Caller = connection.scope["state"]["caller"]
    return found


class BoundedRequest(Request):
    """A request whose body may be at most `limit` bytes."""

    limit = JSON_BYTES

    async def stream(self) -> AsyncGenerator[bytes, None]:
        size = 0
        async for part in super().stream():
            size += len(part)
            if size > self.limit:
                raise OverLimit(f"the request is larger than {self.limit} bytes: send less")
            yield part

    async def object(self) -> dict[str, Any]:
        """The body as a JSON object; raises InvalidRequest."""
        try:
            found = msgspec.json.decode(await self.body())
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise InvalidRequest("Invalid request body: it is no JSON") from None
        if not isinstance(found, dict):
            raise InvalidRequest("Invalid request body: it is no JSON object")
        return found


Handler = Callable[[BoundedRequest], Awaitable[Response]]


def route(path: str, **handlers: Handler) -> Route:
    """A route with a handler per method, each raising ClientError for what it refuses."""

    allowed = ", ".join([*handlers, *(["HEAD"] if "GET" in handlers else [])])

    async def endpoint(request: Request) -> Response:
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            return failure(405, f"{path} takes {allowed}", headers={"allow": allowed})
        bounded = BoundedRequest(request.scope, request.receive)
        bounded.limit = caller(request).upload_bytes if request.method == "POST" else JSON_BYTES
        try:
            return await handler(bounded)
        except ClientError as error:
            hub(request).metrics.refused.labels("http").inc()
            return refusal(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return failure(507, "the gateway's disk is full: try again later")

    # Any other method would be taken for a file of the page, which is mounted at the root.
    return Route(path, endpoint, methods=METHODS)
