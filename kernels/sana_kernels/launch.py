"""Launch parameters per GPU architecture and precision, each with where it is from."""

import logging
from dataclasses import dataclass, replace
from functools import cache

PAPER = "paper, Table 5"
TUNED = "benchmarks/gdn_gpu.py --tune of commit 186af70, each kernel alone, H200, torch 2.11, triton 3.6"
WHOLE = "rows compared by the time of the whole layer core, commit 4ea1a13, H200, torch 2.11, triton 3.6"
RELEASE = "launch table of the released kernels, not in the paper"


@dataclass(frozen=True)
class Phase:
    """Warps of a program, how many tokens it takes at a time (for the scan: tiles of the state), pipeline stages.

    A scan that joins past and later has twice as many tiles, which is as many programs as the two have apart.
    `registers` is the most that a thread may have, 0 for as many as the compiler takes.
    """

    warps: int
    size: int
    stages: int = 1
    registers: int = 0


@dataclass(frozen=True)
class Launch:
    """How the three phases are launched: the figures of `source`, apart from what `changed` names.

    `fused` is summaries of fused operands, which lie as products read them, where it differs from `summaries`.
    `apart` is the readout of more than three frames, whose past and later are apart, where it differs from `readout`.
    `programs` is how many the readout is split into: two per multiprocessor, as frames alone do not fill a large card.
    `threefold`: products in fp32 run on tensor cores, where those compute TF32 more than three times as fast as others
    compute float32. Consumer cards have neither that nor the shared memory for it.
    """

    summaries: Phase
    scan: Phase
    readout: Phase
    source: str = PAPER
    changed: str = ""
    programs: int = 0
    threefold: bool = False
    apart: Phase | None = None
    fused: Phase | None = None


MULTIPROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170, 121: 48}
"""Of the largest card of each architecture that sana-build names (NVIDIA datasheets)."""

TILED = "scan in 4 tiles: undivided it needs more than 99 KiB of shared memory"
SHORT = "summaries of 32 tokens: 128 take more than a minute to compile in fp32"
FITTING = "scan in 8 tiles: what won with 3 frames needs 320 KiB of shared memory with 5"
THREEFOLD = "everything, for products of three in TF32: what spills least, not measured"

BLOCKS = 8 * 132
"""Programs enough for every block of 64 tokens of a steady chunk's frames."""

ROWS = {
    (80, "fp32"): Launch(Phase(8, 16), Phase(8, 8), Phase(8, 16), PAPER, THREEFOLD, threefold=True),
    (80, "tf32"): Launch(Phase(16, 32), Phase(8, 4, 2), Phase(16, 32)),
    (80, "bf16"): Launch(Phase(8, 32), Phase(8, 4, 2), Phase(4, 32)),
    (86, "fp32"): Launch(Phase(16, 32), Phase(4, 8), Phase(16, 32), RELEASE),
    (86, "tf32"): Launch(Phase(16, 32), Phase(8, 4), Phase(16, 32), RELEASE, TILED),
    (86, "bf16"): Launch(Phase(8, 32), Phase(8, 1), Phase(4, 32), RELEASE),
    (89, "fp32"): Launch(Phase(16, 32), Phase(4, 8), Phase(16, 32), RELEASE),
    (89, "tf32"): Launch(Phase(16, 32), Phase(8, 4), Phase(16, 32), RELEASE, TILED),
    (89, "bf16"): Launch(Phase(8, 32), Phase(8, 1), Phase(4, 32), RELEASE),
    (90, "fp32"): Launch(Phase(8, 32), Phase(8, 8, 3), Phase(8, 64), TUNED, FITTING, BLOCKS, True),
    (90, "tf32"): Launch(Phase(8, 128), Phase(4, 4, 2), Phase(4, 64), TUNED, "", BLOCKS, apart=Phase(8, 64)),
    (90, "bf16"): Launch(Phase(8, 64, 4), Phase(4, 2, 3), Phase(8, 64, 1, 80), WHOLE, "", BLOCKS, apart=Phase(8, 64)),
    (100, "fp32"): Launch(Phase(8, 32), Phase(8, 8), Phase(8, 32), PAPER, THREEFOLD, threefold=True),
    (100, "tf32"): Launch(Phase(8, 32), Phase(8, 4, 2), Phase(4, 64), PAPER, SHORT),
    (100, "bf16"): Launch(Phase(4, 64), Phase(8, 4, 2), Phase(8, 64)),
    (120, "fp32"): Launch(Phase(8, 16), Phase(4, 8), Phase(8, 16)),
    (120, "tf32"): Launch(Phase(8, 16), Phase(8, 8), Phase(8, 16)),
    (120, "bf16"): Launch(Phase(8, 32), Phase(8, 8), Phase(4, 32)),
    (121, "fp32"): Launch(Phase(8, 16), Phase(4, 8), Phase(8, 16)),
    (121, "tf32"): Launch(Phase(8, 16), Phase(8, 4), Phase(8, 16), PAPER, TILED),
    (121, "bf16"): Launch(Phase(8, 32), Phase(8, 1), Phase(4, 32)),
}

FUSED = {(90, "fp32"): Phase(8, 64, 3), (90, "tf32"): Phase(8, 64, 3)}
"""Summaries of fused operands: within a microsecond of the fastest of 24 on an H200 (torch 2.11, triton 3.6). Elsewhere
they are as in bf16, whose products they have; not measured."""

LAUNCHES = {
    (sm, precision): replace(
        row,
        programs=row.programs or 2 * MULTIPROCESSORS[sm],
        fused=FUSED.get((sm, precision), ROWS[sm, "bf16"].summaries),
    )
    for (sm, precision), row in ROWS.items()
}


@cache
def launch_for(sm: int, precision: str) -> Launch:
    """The row of an architecture; one without a row takes the nearest, which is logged once."""
    return LAUNCHES[nearest(sm), precision]


@cache
def nearest(sm: int) -> int:
    """The architecture whose launch parameters one takes; said once if it has none of its own."""
    row = min(MULTIPROCESSORS, key=lambda known: (abs(known - sm), known))
    if row != sm:
        logging.getLogger(__name__).warning("no launch parameters for sm_%d: using those of sm_%d", sm, row)
    return row
