"""What the `torch` backend reaches on this GPU: `make bench-gpu`.

First how far every part is from FP32 (no speed is printed if that fails), then medians by CUDA events against the
figures of the published code and our targets for an H200, on random weights at production size. Writes
benchmarks/results/gpu.json and docs/bench-gpu.png; `--profile` prints the ten most expensive kernels of every part.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import dit as transformer
import gdn_gpu
import vae as autoencoder
from rich.console import Console
from rich.table import Table

from sana_export.configs import SANA_STREAMING

ROOT = Path(__file__).parents[2]
BATCHES = (1, 2, 4, 8)
CHUNK_FRAMES = 24


@dataclass(frozen=True)
class Goal:
    """A figure of the report: its unit, what the published code reaches on an H200, and what we want there."""

    unit: str
    published: float | None
    target: float | None
    more_is_better: bool = False

    def met(self, value: float) -> bool | None:
        if self.target is None:
            return None
        return value >= self.target if self.more_is_better else value <= self.target


GOALS = {
    "GDN operator, bf16": Goal("us", 317, 50),
    "GDN operator, tf32": Goal("us", 516, 120),
    "GDN operator, fp32": Goal("us", 880, 300),
    "GDN layer, bf16": Goal("us", 885, 280),
    "DiT chunk, bf16": Goal("ms", 276, 95),
    "DiT chunk, fp8": Goal("ms", None, 65),
    "DiT first chunk, bf16": Goal("ms", 365, 126),
    "VAE encode": Goal("ms", 152, 105),
    "VAE decode": Goal("ms", 108, 50),
    "whole chunk, bf16": Goal("ms", 545, 250),
    "whole chunk, fp8": Goal("ms", None, 210),
    "peak memory, one stream": Goal("GB", None, 14),
    "eight streams over one": Goal("x", None, 1.5, more_is_better=True),
}
"""Published figures and targets were measured or set for one H200, torch 2.11."""

Figures = dict[str, float]


def correctness() -> dict[str, Any]:
    """Of every part; ends the run where one is further from FP32 than it may be."""
    found: dict[str, Any] = {"gdn": gdn_gpu.check(3), "vae": autoencoder.check()}
    if not found["vae"]["passes"]:
        sys.exit(f"the VAE is too far from FP32, no speed is reported: {json.dumps(found['vae'])}")
    dit = transformer.random_dit(SANA_STREAMING)
    engines = {name: transformer.load(dit, SANA_STREAMING, name) for name in ("bf16", "fp8")}
    found["dit"] = transformer.errors(dit, SANA_STREAMING, engines)
    transformer.check(found["dit"])
    return found


def operators() -> Figures:
    times = {f"GDN operator, {name}": gdn_gpu.layer_time(name, 1, 3) for name in gdn_gpu.PRECISIONS}
    for frames in (5, 11):
        times[f"GDN operator, bf16, {frames} frames"] = gdn_gpu.layer_time("bf16", 1, frames)
    return times | {"GDN operator, bf16, batch 4": gdn_gpu.layer_time("bf16", 4, 3)}


def transformers() -> tuple[Figures, dict[str, Any]]:
    """Times of chunks and layers, and the bf16 engines."""
    dit = transformer.random_dit(SANA_STREAMING)
    figures: Figures = {}
    for precision in ("fp8", "bf16"):
        engines = transformer.load(dit, SANA_STREAMING, precision, max(BATCHES))
        times = transformer.chunk_times(engines, SANA_STREAMING, BATCHES)
        figures[f"DiT chunk, {precision}"] = times["steady chunk, batch 1"]
        figures[f"DiT first chunk, {precision}"] = times["first chunk"]
        for batch in BATCHES[1:]:
            figures[f"DiT chunk, {precision}, batch {batch}"] = times[f"steady chunk, batch {batch}"]
        figures[f"DiT pass, {precision}"] = transformer.pass_time(engines["steady"])
    figures["GDN layer, bf16"] = transformer.block_times(engines["steady"])["GDN layer"]
    return figures, engines


def pipeline(precision: str, size: tuple[int, int]) -> Figures:
    """One stream alone on the GPU, all stages in turn, and their peak memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    dit = transformer.random_dit(SANA_STREAMING).to(torch.bfloat16)
    engines = transformer.load(dit, SANA_STREAMING, precision)
    del dit
    network = autoencoder.random_vae(SANA_STREAMING.vae)
    coders = {part: autoencoder.engines(part, network, size) for part in autoencoder.PARTS}
    del network
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    feeds = transformer.steady_stream(engines, SANA_STREAMING).feeds()
    steps = [partial(engines["steady"].run, feeds)]
    steps += [partial(coders[part]["steady"].run, autoencoder.feeds_of(coders[part], "steady")) for part in coders]
    time = transformer.milliseconds(lambda: [step() for step in steps])
    return {f"whole chunk, {precision}": time, "peak memory, one stream": torch.cuda.max_memory_allocated() / 1e9}


def measure() -> Figures:
    figures = operators()
    chunks, engines = transformers()
    figures |= chunks
    del engines
    torch.cuda.empty_cache()
    for part, name in (("vae_encoder", "VAE encode"), ("vae_decoder", "VAE decode")):
        found = autoencoder.measure(part, batches=BATCHES)
        figures[name] = found["steady"]["ms"]
        figures[f"{name}, first chunk"] = found["first"]["ms"]
        for batch in BATCHES[1:]:
            figures[f"{name}, batch {batch}"] = found[f"steady, {batch} streams"]["ms"]
    for precision in ("fp8", "bf16"):
        figures |= pipeline(precision, autoencoder.PRODUCTION)
    parts = ("DiT chunk, bf16", "VAE encode", "VAE decode")
    one, eight = (sum(figures[f"{part}{suffix}"] for part in parts) for suffix in ("", ", batch 8"))
    figures["eight streams over one"] = 8 * one / eight
    return figures


def show(figures: Figures, console: Console) -> None:
    table = Table("", "measured", "published code", "target", "", title=torch.cuda.get_device_name())
    for name, value in sorted(figures.items(), key=lambda item: list(GOALS).index(item[0]) if item[0] in GOALS else 99):
        goal = GOALS.get(name, Goal("us" if "GDN" in name else "ms", None, None))
        met = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[goal.met(value)]
        columns = (f"{limit:g}" if limit else "" for limit in (goal.published, goal.target))
        table.add_row(name, f"{value:.4g} {goal.unit}", *columns, met)
    console.print(table)


def draw(figures: Figures, path: Path) -> None:
    """Bars of what has a target, as multiples of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(name, goal, figures[name]) for name, goal in GOALS.items() if goal.target and not goal.more_is_better]
    figure, axis = pyplot.subplots(figsize=(8, 0.36 * len(rows) + 1))
    places = range(len(rows))[::-1]
    published = [goal.published / goal.target if goal.published else 0 for _, goal, _ in rows]
    axis.barh([place + 0.2 for place in places], published, 0.38, color="#c8c8c8", label="published code")
    reached = [value / goal.target for _, goal, value in rows]
    axis.barh([place - 0.2 for place in places], reached, 0.38, color="#76b900",
              label="this engine")  # fmt: skip
    for place, (_, goal, value) in zip(places, rows, strict=True):
        axis.text(value / goal.target, place - 0.2, f" {value:.3g} {goal.unit}", va="center", fontsize=8)
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set(yticks=list(places), xlabel=f"multiples of the target, {torch.cuda.get_device_name()}")
    axis.set_yticklabels([name for name, _, _ in rows])
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def profile(console: Console) -> None:
    dit = transformer.random_dit(SANA_STREAMING)
    engines = transformer.load(dit, SANA_STREAMING, "bf16")
    console.print("[bold]DiT, one steady chunk[/]")
    transformer.print_kernels(transformer.kernel_times(engines, SANA_STREAMING), 10)
    for part in autoencoder.PARTS:
        console.print(f"[bold]{part}, one steady chunk[/]")
        for name, milliseconds, count in autoencoder.profile(part):
            console.print(f"{milliseconds:8.2f} ms {count:6} x  {name}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="print the most expensive kernels, and no times")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "bench-gpu.png")
    arguments = parser.parse_args()
    console = Console(width=140)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu needs an NVIDIA GPU, and torch sees none")
    if arguments.profile:
        return profile(console)
    errors = correctness()
    console.print("every part is as near to FP32 as it has to be")
    figures = measure()
    show(figures, console)
    arguments.output.write_text(json.dumps({**gdn_gpu.about(), "errors": errors, "figures": figures}, indent=1) + "\n")
    draw(figures, arguments.picture)
    return None


if __name__ == "__main__":
    main()
