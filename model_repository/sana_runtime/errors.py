"""The error tree of the compiler and the server. A message says what is wrong, where, and what to do."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class SanaError(Exception):
    """Root of every error raised on purpose; its text is one sentence for a person."""


class ConfigError(SanaError):
    """A name, option or configuration that cannot be used."""


class CheckpointError(SanaError):
    """A checkpoint that is missing, unreadable or of another architecture."""


class BuildError(SanaError):
    """A stage that could not be exported, built or verified."""


class RepositoryError(SanaError):
    """A built repository that is damaged, edited or of another version."""


class EngineError(SanaError):
    """An engine that cannot be loaded, or was fed the wrong tensors."""


class ServerError(SanaError):
    """A Triton server that does not start, answer or stop."""


class RequestError(SanaError):
    """A request that a stage refuses: wrong frames, prompt or parameters."""


class SequenceError(RequestError):
    """A request that breaks the order of its stream: no START, a gap, an index past the end."""


def choose(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Look `name` up in `table`; the error lists the names there are."""
    if name not in table:
        raise ConfigError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(table))}")
    return table[name]
