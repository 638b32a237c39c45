"""Who may call: tokens with limits of their own, and pages of other sites kept out."""

import hmac
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from sana_client.errors import UsageError
from sana_client.gateway.pacing import Clock
from sana_client.gateway.refusals import Denied, OverLimit
from sana_client.gateway.settings import LOOPBACK

SUBPROTOCOL = "sana"
TOKEN_PREFIX = "bearer."
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Caller:
    """The holder of a token and what it allows."""

    name: str
    streams: int = 4
    requests_per_minute: int = 600
    upload_megabytes: int = 512

    @property
    def upload_bytes(self) -> int:
        return self.upload_megabytes * 2**20


LOCAL = Caller("local", streams=1024, requests_per_minute=60000)
"""Whoever calls a gateway that only this machine can reach, and that has no tokens."""


def read_tokens(path: Path) -> dict[str, Caller]:
    """Callers by their secret, from a TOML file with a table per name; raises UsageError saying what is wrong."""
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the token file {path} cannot be read ({error})") from None
    callers = dict(_caller(path, name, table) for name, table in tables.items())
    if not callers or len(callers) < len(tables):
        raise UsageError(f"{path} must hold one table per name, each with a token of its own")
    return callers


def _caller(path: Path, name: str, table: object) -> tuple[str, Caller]:
    limits = {item.name for item in fields(Caller)} - {"name"}
    if not isinstance(table, dict) or not isinstance(token := table.pop("token", None), str):
        raise UsageError(f'{path}: [{name}] needs a line token = "..."')
    if len(token) < SHORTEST_TOKEN:
        raise UsageError(f"{path}: the token of [{name}] is shorter than {SHORTEST_TOKEN} characters")
    if unknown := table.keys() - limits:
        raise UsageError(f"{path}: [{name}] has unknown keys {', '.join(sorted(unknown))}: use {', '.join(limits)}")
    if not all(isinstance(value, int) and value > 0 for value in table.values()):
        raise UsageError(f"{path}: the limits of [{name}] must be whole numbers above 0")
    return token, Caller(name, **table)


@dataclass
class RateLimit:
    """A bucket of requests that fills up again over a minute."""

    per_minute: int
    clock: Clock
    _left: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._at = self.per_minute, self.clock()

    def spend(self) -> None:
        """One request; raises OverLimit when too many came within a minute."""
        now = self.clock()
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        if self._left < 1:
            raise OverLimit(f"more than {self.per_minute} requests within a minute: slow down")
        self._left -= 1


@dataclass
class Access:
    """Checks a request by its headers. Without `callers` everybody on this machine is let in, and nobody else."""

    callers: Mapping[str, Caller]
    clock: Clock
    _rates: dict[str, RateLimit] = field(default_factory=dict)

    def check(self, headers: Mapping[str, str]) -> Caller:
        """The caller behind lower-case `headers`; raises Denied or OverLimit."""
        self._check_site(headers)
        caller = self._caller(headers) if self.callers else LOCAL
        self._rates.setdefault(caller.name, RateLimit(caller.requests_per_minute, self.clock)).spend()
        return caller

    def _check_site(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        # A name that somebody else's DNS points here would let their page in as if it were ours.
        if not self.callers and _hostname(f"//{host}") not in LOOPBACK:
            raise Denied(f"{host!r:.80} is not a name of this machine: open 127.0.0.1, or use tokens")
        origin = headers.get("origin")
        if origin and not self.callers and urlsplit_host(origin) != host:
            raise Denied(f"pages of {origin!r:.80} may not use this gateway: open the page it serves")

    def _caller(self, headers: Mapping[str, str]) -> Caller:
        offered = _token(headers).encode()
        for token, caller in self.callers.items():
            if hmac.compare_digest(token.encode(), offered):
                return caller
        raise Denied("the token is missing or unknown: send it as Authorization: Bearer TOKEN")


def _token(headers: Mapping[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    # A browser cannot set headers of a WebSocket, and a token in the address would end up in logs.
    offered = (part.strip() for part in headers.get("sec-websocket-protocol", "").split(","))
    return next((part.removeprefix(TOKEN_PREFIX) for part in offered if part.startswith(TOKEN_PREFIX)), "")


def _hostname(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def urlsplit_host(address: str) -> str | None:
    """Host and port of an address, None for one that is malformed."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return None
