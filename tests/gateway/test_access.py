"""Tokens, their limits, and which pages may use a gateway."""

from pathlib import Path

import pytest

from sana_client.errors import UsageError
from sana_client.gateway.access import Access, RateLimit, read_tokens
from sana_client.gateway.refusals import Denied, OverLimit
from sana_client.gateway.settings import Settings

SECRET = "a-long-enough-secret"
HERE = {"host": "127.0.0.1:8080"}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(f'[ann]\ntoken = "{SECRET}"\nstreams = 2\nupload_megabytes = 1\n')
    return path


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {SECRET}"},
        {"authorization": f"bearer  {SECRET}"},
        {"sec-websocket-protocol": f"sana, bearer.{SECRET}"},
    ],
)
def test_a_token_is_found_wherever_a_client_can_put_it(tokens: Path, headers: dict[str, str]) -> None:
    caller = Access(read_tokens(tokens), Clock()).check({"host": "example.org", **headers})
    assert (caller.name, caller.streams, caller.upload_bytes) == ("ann", 2, 2**20)


@pytest.mark.parametrize("token", ["", "Bearer", f"Bearer {SECRET}x", f"Basic {SECRET}", "Bearer é"])
def test_other_tokens_are_denied(tokens: Path, token: str) -> None:
    with pytest.raises(Denied):
        Access(read_tokens(tokens), Clock()).check({"authorization": token})


def test_without_tokens_only_this_machine_and_its_own_page_come_in() -> None:
    access = Access({}, Clock())
    assert access.check(HERE).name == "local"
    assert access.check(HERE | {"origin": "http://127.0.0.1:8080"})
    for headers in (
        HERE | {"origin": "https://evil.example"},
        HERE | {"origin": "http://127.0.0.1:9999"},
        HERE | {"origin": "http://[bad"},
        {"host": "rebound.example"},
        {},
    ):
        with pytest.raises(Denied):
            access.check(headers)


def test_requests_are_limited_by_the_minute() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    for _ in range(60):
        limit.spend()
    with pytest.raises(OverLimit, match="more than 60 requests"):
        limit.spend()
    clock.now += 1.01
    limit.spend()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "one table per name"),
        ("[ann]", "needs a line token"),
        ('[ann]\ntoken = "short"', "shorter than 16"),
        (f'[ann]\ntoken = "{SECRET}"\nstream = 1', "unknown keys stream"),
        (f'[ann]\ntoken = "{SECRET}"\nstreams = 0', "above 0"),
        (f'[ann]\ntoken = "{SECRET}"\n[bob]\ntoken = "{SECRET}"', "a token of its own"),
        ("ann = 1", "needs a line token"),
        ("[", "cannot be read"),
    ],
)
def test_a_token_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason):
        read_tokens(path)


def test_an_address_that_others_reach_needs_tokens(tmp_path: Path, tokens: Path) -> None:
    with pytest.raises(UsageError, match="name a file of tokens"):
        Settings(tmp_path, host="0.0.0.0")
    Settings(tmp_path, host="0.0.0.0", tokens=tokens)
