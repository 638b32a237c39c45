"""Forms of the gated delta network side by side on this GPU: correct first, then how fast.

Medians of calls replayed from a CUDA graph, at the sizes of the production model; a form that fails says so and stops
no other. Everything is compiled first, by as many processes as there are cores.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import gdn_gpu
from candidate_forms import Form, operators


def measured(form: Form) -> dict[str, float]:
    """How far off a form is, and its time if that is near enough (us)."""
    error = form.error()
    if not error <= form.limit:
        return {"error": error}
    return {"error": error, "us": gdn_gpu.microseconds([form.run] * 16, 12)}


def attempt(form: Form) -> dict[str, Any]:
    """A form that does not compile or does not run says so and stops no other."""
    try:
        return measured(form)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:120]}"}


def show(name: str, found: Mapping[str, Any]) -> None:
    said = found.get("failed") or (f"{found['us']:8.1f} us" if "us" in found else "   WRONG    ")
    error = f"off {found['error']:.1e}" if "error" in found else ""
    print(f"{name:80} {said}  {error}", flush=True)


def compile_share(share: int, shares: int) -> None:
    """Run every `shares`-th chain, from `share` on, for what it compiles."""
    chains = itertools.groupby(operators(), key=lambda form: form.whole)
    for whole, forms in itertools.islice(chains, share, None, shares):
        attempt(replace(next(forms), run=whole))


def compile_ahead(shares: int) -> None:
    commands = [[sys.executable, *sys.argv, "--share", str(share), str(shares)] for share in range(shares)]
    for process in [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]:
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, nargs=2, help="compile a share of the forms, and measure none")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.share:
        return compile_share(*arguments.share)
    began = time.perf_counter()
    compile_ahead(min(12, os.cpu_count() or 1))
    print(f"compiled in {time.perf_counter() - began:.0f} s", flush=True)
    found: dict[str, Any] = {}
    for form in operators():
        found[form.name] = attempt(form)
        show(form.name, found[form.name])
    if arguments.output:
        arguments.output.write_text(json.dumps({**gdn_gpu.about(), "candidates": found}, indent=1) + "\n")
    print(f"everything took {time.perf_counter() - began:.0f} s")
    return None


if __name__ == "__main__":
    main()
