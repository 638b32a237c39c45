"""What the `torch` backend reaches on this GPU: `make bench-gpu`.

Every part is compared with FP32 first and ends the run if it is too far off; then come medians by CUDA events, against
the figures of the published code and our targets for an H200, on random weights at production size. The results are
written with every figure, the chart after every part: a run that is cut short leaves what it has. `--profile` prints
the ten most expensive kernels of every part instead.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# Before torch, which it tells how to allocate.
import sana_gpu  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import dit as transformer
import gdn_gpu
import timing
import torch
import vae as autoencoder
from memory import give_back, peak
from report import Report
from rich.console import Console

from sana_export.configs import SANA_STREAMING as MODEL

ROOT = Path(__file__).parents[2]
BATCHES = (1, 2, 4, 8)


def dit(precision: str, report: Report) -> None:
    """Chunks and passes of the transformer, and one of its layers."""
    network = transformer.random_dit(MODEL)
    engines = transformer.load(network, MODEL, precision, max(BATCHES))
    found = transformer.errors(network, MODEL, {precision: engines})
    transformer.check(found)
    report.errors(f"DiT, {precision}", found)
    del network
    stream = transformer.steady_stream(engines, MODEL)
    floors = {kind: transformer.floor(MODEL, precision, kind) for kind in ("first", "steady")}
    first = partial(engines["first"].run, transformer.Stream(engines, MODEL).feeds())
    for batch in BATCHES:
        name = f"DiT chunk, {precision}" + (f", batch {batch}" if batch > 1 else "")
        chunk = partial(engines["steady"].run_batch, [stream.feeds()] * batch)
        rounds = max(min(3, timing.ROUNDS), timing.ROUNDS // batch)
        report.note(name, timing.milliseconds(chunk, rounds), batch * floors["steady"])
    report.note(f"DiT first chunk, {precision}", timing.milliseconds(first), floors["first"])
    passes = MODEL.stream.steps + 1
    report.note(f"DiT pass, {precision}", transformer.pass_time(engines["steady"]), floors["steady"] / passes)
    layer = transformer.block_times(engines["steady"])["GDN layer"]
    report.note(f"GDN layer, {precision}", layer, transformer.layer_floor(MODEL, precision))


def coder(part: str, name: str, report: Report) -> None:
    """First and later chunks of one half of the VAE."""
    found = autoencoder.check(part)
    report.errors(name, found)
    if not found["passes"]:
        sys.exit(f"{part} is too far from FP32, no speed of it is reported: {found}")
    measured = autoencoder.measure(part, batches=BATCHES)
    floors = {kind: measured[kind]["tflop"] / autoencoder.BF16_PEAK * 1e15 for kind in ("first", "steady")}
    report.note(name, measured["steady"]["ms"], floors["steady"])
    report.note(f"{name}, first chunk", measured["first"]["ms"], floors["first"])
    for batch in BATCHES[1:]:
        report.note(f"{name}, batch {batch}", measured[f"steady, {batch} streams"]["ms"], batch * floors["steady"])


def chunk(precision: str, report: Report) -> None:
    """One stream alone on the GPU: all stages in turn, and how much memory they take at most."""
    network = transformer.random_dit(MODEL).to(torch.bfloat16)
    engines = transformer.load(network, MODEL, precision)
    del network
    torch.cuda.empty_cache()
    feeds = transformer.steady_stream(engines, MODEL).feeds()
    report.note(f"peak memory, DiT, {precision}", peak(partial(engines["steady"].run, feeds)))
    vae = autoencoder.random_vae(MODEL.vae)
    coders = {part: autoencoder.engines(part, vae, autoencoder.PRODUCTION) for part in autoencoder.PARTS}
    del vae
    torch.cuda.empty_cache()
    steps = [partial(engines["steady"].run, feeds)]
    steps += [partial(coders[part]["steady"].run, autoencoder.feeds_of(coders[part], "steady")) for part in coders]
    whole = partial(in_turn, steps)
    report.note(f"whole chunk, {precision}", timing.milliseconds(whole))
    report.note(f"peak memory, one stream, {precision}", peak(whole))


def in_turn(steps: Sequence[Callable[[], object]]) -> None:
    """What a step returns goes before the next, as a server's stages each replace what they carried."""
    for step in steps:
        step()


def operators(precision: str, report: Report) -> None:
    """The fused GDN operator, in one chunk of every length and in a batch."""
    report.errors(f"GDN, {precision}", gdn_gpu.check(3, (precision,)))
    for batch, frames in ((1, 3), (1, 5), (1, 11), (4, 3)):
        batched, longer = (f", batch {batch}" if batch > 1 else ""), (f", {frames} frames" if frames != 3 else "")
        name = f"GDN operator, {precision}{longer}{batched}"
        report.note(name, gdn_gpu.layer_time(precision, batch, frames), gdn_gpu.layer_floor(batch, frames))


Part = Callable[[Report], None]

PARTS: dict[str, Part] = {
    **{f"dit-{precision}": partial(dit, precision) for precision in ("bf16", "fp8")},
    "vae-encoder": partial(coder, "vae_encoder", "VAE encode"),
    "vae-decoder": partial(coder, "vae_decoder", "VAE decode"),
    **{f"chunk-{precision}": partial(chunk, precision) for precision in ("bf16", "fp8")},
    **{f"gdn-{precision}": partial(operators, precision) for precision in gdn_gpu.PRECISIONS},
}


def compile_ahead(names: Sequence[str]) -> None:
    """Run every part in a process of its own, all of them at once: what they compile stays on disk.

    One after the other they wait for the compiler three times longer than for the GPU.
    """
    command = [sys.executable, str(Path(__file__).parent), "--compile"]
    running = [
        subprocess.Popen([*command, name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in names
        if not name.startswith("chunk")
    ]
    for process in running:
        process.wait()


def run(names: Sequence[str], report: Report) -> None:
    for name in names:
        began = time.perf_counter()
        PARTS[name](report)
        give_back()
        report.part(name, time.perf_counter() - began)


def profile(console: Console) -> None:
    network = transformer.random_dit(MODEL)
    for precision in ("bf16", "fp8"):
        engines = transformer.load(network, MODEL, precision)
        console.print(f"[bold]DiT, {precision}, one steady chunk[/]")
        rows = transformer.kernel_times(engines, MODEL)
        transformer.print_kernels(rows, 10)
        console.print({part: round(time, 2) for part, time in transformer.by_part(rows).items()})
    for part in autoencoder.PARTS:
        console.print(f"[bold]{part}, one steady chunk[/]")
        for name, milliseconds, count in autoencoder.profile(part):
            console.print(f"{milliseconds:8.2f} ms {count:6} x  {name}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", action="store_true", help="print the most expensive kernels, and no times")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--compile", choices=PARTS, metavar="PART", help="run a part for what it compiles alone")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "bench-gpu.png")
    arguments = parser.parse_args()
    console = Console(width=140)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu needs an NVIDIA GPU, and torch sees none")
    if arguments.profile:
        return profile(console)
    if arguments.compile:
        timing.ROUNDS = 1
        PARTS[arguments.compile](Report.nowhere())
        return None
    report = Report(console, arguments.output, arguments.picture, gdn_gpu.about())
    began = time.perf_counter()
    compile_ahead(arguments.only)
    console.print(f"compiled in {time.perf_counter() - began:.0f} s")
    run(arguments.only, report)
    report.show()
    console.print(f"everything took {time.perf_counter() - began:.0f} s")
    return None


if __name__ == "__main__":
    main()
