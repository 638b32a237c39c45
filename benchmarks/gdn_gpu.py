"""The GDN kernels on this GPU: correct against float64 first, then how fast; `--tune` tries other launch parameters.

Medians over CUDA events of calls replayed from a CUDA graph, at the sizes of the production model (20 heads of 112
channels, 880 tokens per latent frame). Operands rotate over several copies, so that a call does not find its own in L2.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from records import commit
from torch import Tensor
from triton.errors import TritonError

from sana_kernels import naive, naive_layer
from sana_kernels.calls import calls
from sana_kernels.launch import Launch, Phase, launch_for
from sana_kernels.launcher import allocate, architecture, bind, compiled_ahead
from sana_kernels.operands import layer_problem
from sana_kernels.ops import gdn, gdn_layer_core
from sana_kernels.problem import Problem

ROOT = Path(__file__).parents[1]
HEADS, WIDTH, TOKENS = 20, 112, 880
PRECISIONS = ("bf16", "tf32", "fp32")
FRAMES, BATCHES = (3, 5, 11), (1, 4)
COPIES = 4
COPY_RATE = 4.27e12
"""Bytes per second that a copy reads and writes, measured on an H200."""
LIMITS = {"fp32": 1e-5, "tf32": 3e-3}
"""Of the operator, against float64: float32 sums over 880 tokens in any order; TF32 cuts operands to 2^-10, and three
products follow each other. In bf16 it must lose no more than the reference run in bfloat16."""
LAYER_LIMITS = {"fp32": 2e-3, "tf32": 4e-3, "bf16": 4e-3}
"""Of the layer core, whose output is rounded to bfloat16: that alone costs 1.7e-3."""

Named = dict[str, Tensor]


def draw(*sizes: int) -> Tensor:
    return torch.randn(*sizes, device="cuda", dtype=torch.float32)


def operands(batch: int, frames: int) -> Named:
    """Prepared operands in float32, scaled like those of the model."""
    size = batch, HEADS, frames, TOKENS
    q, k = draw(*size, WIDTH).relu(), draw(*size, WIDTH).relu() * (WIDTH * TOKENS) ** -0.5
    rope = rotations(frames * TOKENS).unflatten(0, (frames, TOKENS))
    q_rot, k_rot = (naive_layer.rotate(x, rope) for x in (q, k))
    gates = draw(*size).sigmoid(), draw(batch, HEADS, frames).sigmoid()
    names = ("q", "k", "v", "q_rot", "k_rot", "beta", "decay")
    return dict(zip(names, (q, k, draw(*size, WIDTH), q_rot, k_rot, *gates), strict=True)) | state(batch)


def rotations(tokens: int) -> Tensor:
    """cos and sin of each channel pair, side by side."""
    angles = draw(tokens, WIDTH // 2)
    return torch.stack([angles.cos(), angles.sin()], -1).flatten(-2)


def state(batch: int) -> Named:
    return {"state_kv": 0.1 * draw(batch, HEADS, WIDTH, WIDTH), "state_z": 1 + draw(batch, HEADS, WIDTH).abs()}


def projections(batch: int, frames: int) -> Named:
    """Raw projections in bfloat16, q, k, v and gate as columns of one GEMM's output; rope in float16."""
    channels, tokens = HEADS * WIDTH, frames * TOKENS
    columns = draw(batch, tokens, 4 * channels).bfloat16().chunk(4, dim=-1)
    gates = draw(batch, tokens, 2 * HEADS).bfloat16().chunk(2, dim=-1)
    weights = [1 + 0.1 * draw(channels), 1 + 0.1 * draw(channels), draw(HEADS), 0.3 * draw(HEADS)]
    names = ("q", "k", "v", "gate", "beta", "rate", "q_weight", "k_weight", "rate_bias", "a_log", "rope")
    tensors = (*columns, *gates, *weights, rotations(tokens).half())
    return dict(zip(names, tensors, strict=True)) | state(batch)


def off(got: Tensor, wanted: Tensor) -> float:
    error = (got.double() - wanted.double()).square().mean() / wanted.double().square().mean()
    return float(torch.nan_to_num(error.sqrt(), nan=float("inf")))


def wide(tensors: Named, kind: torch.dtype) -> tuple[Any, ...]:
    """Operands in another type, and behind them the state."""
    rest = [x.to(kind) for name, x in tensors.items() if not name.startswith("state")]
    return *rest, naive.State(tensors["state_kv"].to(kind), tensors["state_z"].to(kind))


def operator_errors(frames: int, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of every precision against float64, and of the reference in bfloat16."""
    tensors = operands(2, frames)
    out, after = naive.gdn(*wide(tensors, torch.float64))
    plain, plain_after = naive.gdn(*wide(tensors, torch.bfloat16))
    found = {name: gdn(*tensors.values(), name) for name in precisions} | {"plain bf16": (plain, *plain_after)}
    return {name: _errors(results, (out, *after)) for name, results in found.items()}


def layer_errors(frames: int, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of every precision on bfloat16 projections, against float64 on the same."""
    tensors = projections(2, frames)
    out, after = naive_layer.gdn_layer_core(*wide(tensors, torch.float64), frames)
    found = {name: gdn_layer_core(**tensors, frames=frames, precision=name) for name in precisions}
    return {name: _errors(results, (out, *after)) for name, results in found.items()}


def _errors(results: Sequence[Tensor], wanted: Sequence[Tensor]) -> dict[str, float]:
    return {name: off(*pair) for name, pair in zip(("out", "kv", "z"), zip(results, wanted, strict=True), strict=True)}


def check(frames: int, precisions: Sequence[str] = PRECISIONS) -> dict[str, dict[str, dict[str, float]]]:
    """Errors of both operators; ends the run where one is larger than allowed."""
    errors = {"operator": operator_errors(frames, precisions), "layer core": layer_errors(frames, precisions)}
    limits = {"operator": LIMITS | {"bf16": errors["operator"]["plain bf16"]}, "layer core": LAYER_LIMITS}
    for operator, precision in itertools.product(errors, precisions):
        limit = limits[operator][precision]
        for part, error in errors[operator][precision].items():
            allowed = limit[part] if isinstance(limit, dict) else limit
            if not error <= allowed:
                sys.exit(f"{operator}, {precision}, {frames} frames: {part} is {error:.1e} off, allowed {allowed:.1e}")
    return errors


def microseconds(functions: Sequence[Callable[[], object]], rounds: int = 30) -> float:
    """Median time of one function, all of them captured into one CUDA graph that is replayed."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for function in functions:
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return 1e3 * median(start.elapsed_time(stop) for start, stop in events) / len(functions)


def operator_time(precision: str, batch: int, frames: int) -> float:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    kept = {"decay", "state_kv", "state_z"}
    copies = [operands(batch, frames) for _ in range(COPIES)]
    typed = [{name: x if name in kept else x.to(kind) for name, x in copy.items()} for copy in copies]
    return microseconds([partial(gdn, *copy.values(), precision) for copy in typed])


def layer_time(precision: str, batch: int, frames: int) -> float:
    copies = [projections(batch, frames) for _ in range(COPIES)]
    return microseconds([partial(gdn_layer_core, **copy, frames=frames, precision=precision) for copy in copies])


def layer_floor(batch: int, frames: int) -> float:
    """Microseconds of reading q, k, v and the gate and writing the output once, at the rate of a large copy."""
    return 5 * 2 * batch * frames * TOKENS * HEADS * WIDTH / COPY_RATE * 1e6


def bound(p: Problem, precision: str, launch: Launch) -> list[Named]:
    """Copies of every tensor that the layer's calls touch, after one run of the whole chain."""
    copies = [projections(p.batch, p.frames) for _ in range(COPIES)]
    for copy in copies:
        results = gdn_layer_core(**copy, frames=p.frames, precision=precision)
        copy |= dict(zip(("out", "final_kv", "final_z"), results, strict=True)) | allocate(p, results[0].device)
        for call in calls(p, launch):
            bind(call, copy)()
    return copies


def phase_times(precision: str, batch: int, frames: int, launch: Launch) -> dict[str, float]:
    """Of every kernel of the layer."""
    p = layer_problem("gdn_layer_core", projections(batch, frames), frames, precision)
    copies = bound(p, precision, launch)
    return {call.kernel: microseconds([bind(call, copy) for copy in copies]) for call in calls(p, launch)}


SWEEP = {
    "summaries": [Phase(*row) for row in itertools.product((8, 16), (32, 64, 128), (1, 2, 3, 4, 5))],
    "scan": [Phase(*row) for row in itertools.product((4, 8), (2, 4, 8), (1, 2, 3))],
    "readout": [Phase(*row) for row in itertools.product((4, 8), (32, 64, 128), (1,), (0, 64, 80, 128))],
}
PROGRAMS = {"summaries": (1,), "scan": (1,), "readout": (0.5, 1)}
"""Shares of the row's programs; only the readout has a choice."""


def rows_to_try(launch: Launch) -> Iterator[tuple[str, Launch]]:
    """The row with other parameters for one kernel, by its name."""
    for kernel, phases in SWEEP.items():
        for phase, share in itertools.product(phases, PROGRAMS[kernel]):
            changed = {kernel: phase, "programs": int(launch.programs * share), "fused": None}
            yield kernel, dataclasses.replace(launch, **changed)


def tune(precision: str, frames: int, launch: Launch) -> list[tuple[str, Phase, int, float]]:
    """Every phase with other launch parameters, fastest first; what does not fit is left out, by name."""
    p = layer_problem("gdn_layer_core", projections(1, frames), frames, precision)
    copies = bound(p, precision, launch)
    tried = [
        (kernel, row, next(call for call in calls(p, row) if call.kernel == kernel))
        for kernel, row in rows_to_try(launch)
    ]
    with compiled_ahead(strict=False):
        for _, _, call in tried:
            bind(call, copies[0])()
    found = []
    for kernel, row, call in tried:
        phase = getattr(row, kernel)
        try:
            found.append((kernel, phase, row.programs, microseconds([bind(call, copy) for copy in copies])))
        except TritonError as error:
            print(f"{kernel} {phase}: {type(error).__name__}", file=sys.stderr)
    return sorted(found, key=lambda entry: (entry[0], entry[-1]))


def about() -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "commit": commit(),
    }


def measure(launch: Launch) -> dict[str, object]:
    times = {}
    for precision, frames, batch in itertools.product(PRECISIONS, FRAMES, BATCHES):
        key = f"{precision}, {frames} frames, batch {batch}"
        times[key] = {
            "operator": operator_time(precision, batch, frames),
            "layer": layer_time(precision, batch, frames),
        }
        print(
            f"{key:28} operator {times[key]['operator']:8.1f} us   layer core {times[key]['layer']:8.1f} us", flush=True
        )
    return {"times_us": times, "phases_us": phase_times("bf16", 1, 3, launch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", choices=PRECISIONS, help="try launch parameters of one precision on a 3-frame chunk")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gdn_gpu.json")
    arguments = parser.parse_args()
    errors = {f"{frames} frames": check(frames) for frames in FRAMES}
    print(json.dumps(errors["3 frames"], indent=1))
    sm = architecture(torch.device("cuda"))
    if arguments.tune:
        for kernel, phase, factor, time in tune(arguments.tune, 3, launch_for(sm, arguments.tune)):
            print(
                f"{kernel:10} warps {phase.warps:2} size {phase.size:3} stages {phase.stages} "
                f"registers {phase.registers:3} programs {factor:4} {time:7.1f} us"
            )
        return
    result = {**about(), "errors": errors, **measure(launch_for(sm, "bf16"))}
    print(json.dumps(result["phases_us"]))
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
