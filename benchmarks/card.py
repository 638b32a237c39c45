"""Everything that a machine with a data-centre GPU has to say, one step after another: `make card`.

The kernels' tests run as machine code, `make bench-gpu` measures the engines, and repositories in BF16 and FP8 are
built and served. Each step has a log in the output folder; one that fails does not keep the others from running.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TESTS = [
    *(f"tests/kernels/test_{name}.py" for name in ("kernels", "layer_kernels", "dit_kernels", "conv", "conv_fill")),
    "tests/kernels/test_address_ops.py",
    *(f"tests/runtime/test_{name}.py" for name in ("clock", "memory", "turns")),
    "tests/gpu/test_addresses.py",
]
POLICIES = ("bf16", "fp8")
STREAMS = 8


@dataclass(frozen=True)
class Step:
    """A program, and what its environment has beside ours."""

    command: Sequence[object]
    variables: dict[str, str] = field(default_factory=dict)


def steps(gpu: str, output: Path) -> dict[str, Step]:
    """By name, in the order in which they need each other."""
    found = {
        "tests": Step(["-m", "pytest", "-v", *TESTS], {"TRITON_INTERPRET": "0"}),
        "bench": Step(["benchmarks/gpu", "--output", output / "gpu.json", "--picture", output / "bench-gpu.png"]),
    }
    build = ["-c", "from sana_build.cli import main; main()", "--model", "sana-streaming", "--checkpoint", "random:0"]
    for policy in POLICIES:
        repository, figures = output / policy, output / f"gpu_serving_{policy}.json"
        chosen = ["--policy", policy, "--gpu", gpu, "--streams", STREAMS, "--output", repository]
        found[f"build-{policy}"] = Step([*build, *chosen])
        found[f"serve-{policy}"] = Step(["benchmarks/gpu_serving.py", repository, "--output", figures])
    return found


def run(step: Step, log: Path) -> tuple[int, float]:
    """Exit status and seconds."""
    began = time.perf_counter()
    command = [sys.executable, *map(str, step.command)]
    with log.open("w") as file:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.variables}
        ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    return ended.returncode, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(steps("", Path()))
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--gpu", default="h200", help="the card as `sana-build --gpu` names it; h200 if not given")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "card")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/card.py needs an NVIDIA GPU, and torch sees none")
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    known, console = steps(arguments.gpu, output), Console(width=140)
    table, failed = Table("step", "status", "seconds", "log"), False
    for name in sorted(arguments.only, key=names.index):
        log = output / f"{name}.log"
        console.print(f"{name}: {log}", markup=False)
        status, seconds = run(known[name], log)
        table.add_row(name, str(status), f"{seconds:.0f}", str(log))
        failed |= status != 0
    console.print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
