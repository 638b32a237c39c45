"""Verification: every golden section in turn, one check per group of arrays."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sana_export.golden import Check, group, read_config
from sana_runtime.errors import BuildError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SECTIONS", "Check", "report", "run"]

Section = Callable[[Path, dict[str, Any]], Iterator[Check]]

SECTIONS = {
    "a": "sana_export.golden_dit:section_a",
    "b": "sana_export.golden_dit:section_b",
    "c": "sana_export.golden_layers:section_c",
    "d": "sana_export.golden_layers:section_d",
    "e": "sana_export.golden_layers:section_e",
    "f": "sana_export.golden_dit:section_f",
    "g": "sana_export.golden_dit:section_g",
    "h": "sana_export.golden_vae:section_h",
    "i": "sana_export.golden_layers:section_i",
}
"""Section letter to the function that checks it; imported when its turn comes."""

FILES = (
    "a_bidirectional_forward.npz",
    "b_streaming_rollout.npz",
    "c_gdn_layer.npz",
    "d_softmax_layer_and_blocks.npz",
    "dit_bidirectional_weights.npz",
    "dit_streaming_weights.npz",
    "e_ffn.npz",
    "f_streaming_sampler.npz",
    "g_bidirectional_sampler.npz",
    "h_vae.npz",
    "h_vae_weights_bidirectional.npz",
    "i_tables.npz",
)


def run(directory: Path, sections: Iterable[str] = SECTIONS) -> Iterator[Check]:
    """Check a folder of golden data, section by section.

    Raises BuildError for a folder with missing or unknown files, arrays or fields, CheckpointError for weights of
    another architecture.
    """
    config = read_config(directory)
    check_files(directory)
    for name in sections:
        yield from group(_load(SECTIONS[name])(directory, config))


def check_files(directory: Path) -> None:
    present = {path.name for path in directory.glob("*.npz")}
    missing, unknown = sorted(set(FILES) - present), sorted(present - set(FILES))
    if missing or unknown:
        raise BuildError(
            f"{directory} is not a folder of golden data that this version knows: "
            f"missing {', '.join(missing) or 'none'}, unknown {', '.join(unknown) or 'none'}"
        )


def _load(path: str) -> Section:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def report(checks: Iterable[Check], console: "Console") -> bool:
    """Print one line per check as it comes, and a summary; True if all are ok."""
    done = []
    for check in checks:
        console.print(_line(check), soft_wrap=True, highlight=False)
        done.append(check)
    failed = [check for check in done if not check.ok]
    console.print(f"{len(done)} array groups, {len(failed)} failed", highlight=False)
    return bool(done) and not failed


def _line(check: Check) -> str:
    verdict = "[green]ok[/]" if check.ok else "[bold red]FAIL[/]"
    limit = f"{check.limit:<8.1e}"
    if check.informative:
        verdict, limit = "informative", f"{'-':<8}"
    where = f"  worst: {check.worst}" if not check.ok and check.worst not in ("", check.name) else ""
    return f"{check.section}  {check.name:<44} {check.error:.2e}  limit {limit} {verdict}{where}"
