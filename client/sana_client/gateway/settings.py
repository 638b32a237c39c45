"""Everything about a gateway that can be chosen, with defaults that are safe on a machine shared with others."""

from dataclasses import dataclass
from pathlib import Path

from sana_client.errors import UsageError

LOOPBACK = frozenset(("127.0.0.1", "localhost", "::1"))


@dataclass(frozen=True)
class Settings:
    """How a gateway listens, whom it serves, and where its bounds are (seconds, bytes, pixels, characters).

    `media` is a folder whose videos any caller may edit; `folder` takes uploads and finished jobs.
    """

    folder: Path
    triton: str = "127.0.0.1:8001"
    model: str = "sana_streaming"
    host: str = "127.0.0.1"
    port: int = 8080
    tokens: Path | None = None
    media: Path | None = None
    framing: str = "documented"
    line: int = 16
    sessions: int = 256
    spectators: int = 16
    in_flight: int = 2
    chunk_seconds: float = 30.0
    stall_seconds: float = 10.0
    full_seconds: float = 1.0
    message_bytes: int = 32 * 2**20
    frame_pixels: int = 4096 * 4096
    prompt_characters: int = 2000
    jobs: int = 64
    uploads: int = 64

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and self.tokens is None:
            raise UsageError(f"{self.host} can be reached from elsewhere: name a file of tokens with --tokens")
        if self.media and not self.media.is_dir():
            raise UsageError(f"the media folder {self.media} does not exist: create it or choose another one")
