"""Forms of the transformer's kernels side by side on this GPU: correct first, then how fast.

`python benchmarks/gpu/candidates.py --former DIR` also runs the forms they replace, the package `former_kernels` in
DIR. Medians of calls replayed from a CUDA graph, at the sizes of the production model; a form that fails says so and
stops no other. Everything is compiled first, by as many processes as there are cores.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import gdn_gpu
from candidate_forms import NARROWED, PARTS, ROUNDED, Form


def measured(form: Form) -> dict[str, float]:
    """How far off a form is, and its time if that is near enough (us)."""
    error = form.error()
    if not error <= (NARROWED if form.narrow else ROUNDED):
        return {"error": error}
    return {"error": error, "us": gdn_gpu.microseconds([form.run] * 16, 12)}


def attempt(form: Form) -> dict[str, Any]:
    """A form that does not compile or does not run says so and stops no other."""
    try:
        return measured(form)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:120]}"}


def show(part: str, name: str, found: Mapping[str, Any]) -> None:
    said = found.get("failed") or (f"{found['us']:8.1f} us" if "us" in found else "   WRONG    ")
    error = f"off {found['error']:.1e}" if "error" in found else ""
    print(f"{part:16} {name:48} {said}  {error}", flush=True)


def compile_share(former: ModuleType | None, share: int, shares: int) -> None:
    """Run every `shares`-th form, from `share` on, for what it compiles."""
    forms = (form for part in PARTS.values() for form in part(former))
    for index, form in enumerate(forms):
        if index % shares == share:
            attempt(replace(form, run=form.whole or form.run))


def compile_ahead(shares: int) -> None:
    commands = [[sys.executable, *sys.argv, "--share", str(share), str(shares)] for share in range(shares)]
    for process in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]:
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--former", type=Path, help="folder of the package of the forms that are to be replaced")
    parser.add_argument("--share", type=int, nargs=2, help="compile a share of the forms, and measure none")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    former = None
    if arguments.former:
        sys.path.insert(0, str(arguments.former))
        former = importlib.import_module("former_kernels")
    if arguments.share:
        return compile_share(former, *arguments.share)
    began = time.perf_counter()
    compile_ahead(min(12, os.cpu_count() or 1))
    print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    found: dict[str, dict[str, Any]] = {}
    for part, forms in PARTS.items():
        for form in forms(former):
            found.setdefault(part, {})[form.name] = attempt(form)
            show(part, form.name, found[part][form.name])
        if arguments.output:
            arguments.output.write_text(json.dumps({**gdn_gpu.about(), "candidates": found}, indent=1) + "\n")
    print(f"everything took {time.perf_counter() - began:.0f} s")
    return None


if __name__ == "__main__":
    main()
