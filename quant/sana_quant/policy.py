"""Policies: which group runs in which precision in which blocks, read from small TOML files."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_quant.groups import GROUPS, block_ranges
from sana_runtime.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """A number format. `bits` is the width the arithmetic runs at, `stored` what a weight takes with its scales."""

    bits: int
    stored: float


PRECISIONS = {
    "fp32": Precision(32, 32),
    "bf16": Precision(16, 16),
    "fp8": Precision(8, 8),
    # One FP8 scale per block of 16.
    "nvfp4": Precision(4, 4 + 8 / 16),
}

OUTSIDE = ("bf16", "fp32")
"""What the layers outside the groups may run in."""

BLOCKS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Policy:
    """The precision of every group in every block, and of everything `outside` the groups."""

    name: str
    title: str
    outside: str
    groups: Mapping[str, tuple[str, ...]]

    def precision(self, group: str | None, block: int | None) -> str:
        """Of a group's layer in a block; of all other layers where `group` or `block` is None."""
        return self.outside if group is None or block is None else self.groups[group][block]

    @property
    def precisions(self) -> frozenset[str]:
        """Every precision that a card must know to run this."""
        return frozenset({self.outside, *(precision for blocks in self.groups.values() for precision in blocks)})


def shipped() -> dict[str, Path]:
    """The policy files that come with the package, in a wheel or in a checkout."""
    package = Path(__file__).parent
    installed = package / "policies"
    folder = installed if installed.is_dir() else package.parent / "policies"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_policy(spec: str, depth: int) -> Policy:
    """The shipped policy called `spec`, or the one in that .toml file, for a transformer of `depth` blocks.

    Raises ConfigError naming the file, the entry and what may stand there.
    """
    path = Path(spec)
    if path.suffix != ".toml":
        files = shipped()
        if spec not in files:
            raise ConfigError(f"unknown --policy {spec!r}: choose one of {', '.join(files)}, or name a .toml file")
        path = files[spec]
    return _parse(f"policy {spec}", path.stem, _read(path), depth)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"policy {path} cannot be read ({error.strerror}): name an existing .toml file") from error
    except ValueError as error:
        raise ConfigError(f"policy {path} is not TOML ({error}): correct that line") from error


def _parse(where: str, name: str, raw: dict[str, Any], depth: int) -> Policy:
    for key in raw:
        _member(where, "the key", key, ("title", "default", "outside", "groups"))
    if "default" not in raw:
        raise ConfigError(f'{where} has no `default`: add the precision of the groups it does not name, as "fp8"')
    default = _member(where, "default =", raw["default"], PRECISIONS)
    outside = _member(where, "outside =", raw.get("outside", "bf16"), OUTSIDE)
    table = raw.get("groups", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{where} has groups = {table!r}: write a table [groups], one line per group")
    for group in table:
        _member(where, "the group", group, GROUPS)
    groups = {group: _group(f"{where}, group {group},", table.get(group, {}), default, depth) for group in GROUPS}
    return Policy(name, str(raw.get("title", name)), outside, groups)


def _group(where: str, entry: Any, default: str, depth: int) -> tuple[str, ...]:
    """One precision per block, from one precision for all blocks or a table of block ranges."""
    if not isinstance(entry, dict):
        return (_member(where, "the precision", entry, PRECISIONS),) * depth
    chosen: dict[int, tuple[str, str]] = {}
    for key, value in entry.items():
        precision = _member(where, f"{key} =", value, PRECISIONS)
        for block in _blocks(where, key, depth):
            if block in chosen:
                raise ConfigError(
                    f"{where} sets block {block} in {chosen[block][0]!r} and in {key!r}: keep one of them"
                )
            chosen[block] = key, precision
    return tuple(chosen[block][1] if block in chosen else default for block in range(depth))


def _blocks(where: str, key: str, depth: int) -> range:
    """The blocks of a named range, of "7" or of "6-19"."""
    named = block_ranges(depth)
    if key in named:
        return named[key]
    match = BLOCKS.fullmatch(key)
    if match is None:
        raise ConfigError(f"{where} has the blocks {key!r}: write {', '.join(named)}, a block, or a range as 6-19")
    first, last = int(match[1]), int(match[2] or match[1])
    if first > last or last >= depth:
        raise ConfigError(f"{where} has the blocks {key!r}, but the model has the blocks 0-{depth - 1}")
    return range(first, last + 1)


def _member(where: str, what: str, value: Any, allowed: Iterable[str]) -> str:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigError(f"{where} has {what} {value!r}: allowed are {', '.join(allowed)}")
    return str(value)
