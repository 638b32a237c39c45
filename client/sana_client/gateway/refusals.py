"""What a gateway refuses: the request is answered, the session and everybody else go on."""

from sana_client.errors import ClientError


class InvalidRequest(ClientError):
    """An init, an event or an HTTP request that cannot be used; the message says which field and what it must be."""


class CommandRefused(ClientError):
    """A session command that does not fit the state of its session."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(reason)
        self.command = command


class Full(ClientError):
    """No slot is free; `ahead` others are waiting already."""

    def __init__(self, reason: str, ahead: int) -> None:
        super().__init__(reason)
        self.ahead = ahead


class Denied(ClientError):
    """A caller without a valid token, or from a page that is not ours."""


class OverLimit(ClientError):
    """A caller that has used up what its token allows."""


class NotFound(ClientError):
    """An upload, a job, a session or a model that this caller cannot see."""
