"""The error tree of the client. A message is one sentence for a person: what is wrong, where, what to do."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class ClientError(Exception):
    """Root of every error the client raises on purpose."""


class UsageError(ClientError):
    """An option, a path or a call that cannot be used as given."""


class VideoError(ClientError):
    """A video that cannot be read or written."""


class ModelError(ClientError):
    """A served model that is missing or not one of ours."""


class TransportError(ClientError):
    """A way of moving frames that this client and this server do not share."""


class ServerLost(ClientError):
    """A server that cannot be reached, went away, or is stopping."""


class ServerStalled(ServerLost):
    """A server that is connected and does not answer in time."""


class ServerFull(ClientError):
    """A server whose slots are all taken by other streams."""


class SequenceLost(ClientError):
    """A stream that the server no longer knows; it can be restarted from chunk 0."""


class ChunkFailed(ClientError):
    """A chunk that a stage refused or failed on; its sequence is broken until it is restarted."""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look `name` up in `table`; raises UsageError that lists the names there are."""
    if name not in table:
        raise UsageError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(table))}")
    return table[name]
