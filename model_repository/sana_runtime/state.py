"""Carried state as named tensors: an engine reads `NAME.in` and writes `NAME.out`, everything else calls it `NAME`."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from sana_runtime.errors import ConfigError

T = TypeVar("T")

IN = ".in"
OUT = ".out"


def as_inputs(state: Mapping[str, T]) -> dict[str, T]:
    """State under the names an engine reads it by."""
    return {name + IN: value for name, value in state.items()}


def from_outputs(outputs: Mapping[str, T]) -> dict[str, T]:
    """The state an engine wrote; outputs that are not state are left out."""
    return {name.removesuffix(OUT): value for name, value in outputs.items() if name.endswith(OUT)}


def check_names(names: Iterable[str]) -> None:
    """Refuse names whose inputs and outputs sort differently: a server may pair the two lists by position."""
    names = list(names)
    ins = sorted(name + IN for name in names)
    outs = sorted(name + OUT for name in names)
    for read, written in zip(ins, outs, strict=True):
        if read.removesuffix(IN) != written.removesuffix(OUT):
            raise ConfigError(f"state {read} would be paired with {written} when sorted: rename one of them")
