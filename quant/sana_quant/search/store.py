"""Scores on disk, one line of JSON per measured policy, so that a stopped search goes on where it was."""

import fcntl
import json
from pathlib import Path

from sana_quant.search.study import Score
from sana_runtime.errors import ConfigError


class Store:
    """Scores by key. What was added survives a crash: half a last line is dropped when the file is opened.

    Raises ConfigError for a file that another search has open, that cannot be written, or that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another search is writing {path}: wait for it, or name another folder") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error.strerror}): name another folder") from error
        self.scores = dict(map(self._parse, enumerate(self._whole_lines(), 1)))

    def close(self) -> None:
        self._file.close()

    def add(self, key: str, about: str, score: Score, seconds: float) -> None:
        """Keep a score; `about` is for a person who reads the file."""
        entry = {"key": key, "policy": about, "rmse": score.rmse, "perceptual": score.perceptual}
        try:
            self._file.write(json.dumps({**entry, "seconds": round(seconds, 3)}) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror}): free some space and start again"
            ) from error
        self.scores[key] = score

    def _whole_lines(self) -> list[str]:
        """The lines that end in a newline; what follows them was being written when a search was killed."""
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition("\n")
        self._file.truncate(len((whole + newline).encode()))
        return whole.split("\n") if newline else []

    def _parse(self, numbered: tuple[int, str]) -> tuple[str, Score]:
        number, line = numbered
        try:
            entry = json.loads(line)
            return str(entry["key"]), Score(tuple(entry["rmse"]), tuple(entry["perceptual"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path}, line {number}, is no score: delete that line, or the file") from error
