"""The kernel calls of one gated delta network evaluation, and the workspace between them, as plain data.

Needs neither torch nor Triton: the operator, the compiler of cubins and the plugin all run this list.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sana_kernels.launch import Launch, Phase
from sana_kernels.problem import NARROWEST, Problem

EPSILON = 1e-8
NORM_EPSILON = 1e-5
PREPARE_WARPS = 4


@dataclass(frozen=True)
class Call:
    """One launch: the kernel's tensor parameters are found by name, its other parameters are `constants`."""

    kernel: str
    grid: tuple[int, int, int]
    warps: int
    stages: int
    constants: Mapping[str, Any] = field(default_factory=dict)
    registers: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """What Triton's compiler is told; fusing multiply and add is named because its default differs by release."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        return options | ({"maxnreg": self.registers} if self.registers else {})


@dataclass(frozen=True)
class Buffer:
    """A tensor between the phases."""

    shape: tuple[int, ...]
    dtype: str


def workspace(p: Problem) -> dict[str, Buffer]:
    """What the phases hand to each other; what is erased only feeds products and has their type."""
    operand = "bfloat16" if p.precision == "bf16" else "float32"
    frames = p.all_frames
    buffers = {
        "erase_kv": Buffer((frames, p.key_pad, p.key_pad), operand),
        "erase_z": Buffer((frames, p.key_pad, p.key_pad), operand),
        "write_kv": Buffer((frames, p.value_pad, p.key_pad), "float32"),
        "write_z": Buffer((frames, p.key_pad), "float32"),
        "history_kv": Buffer((p.chains, frames, p.value_pad, p.key_pad), operand),
        "history_z": Buffer((p.chains, frames, p.key_pad), "float32"),
    }
    if p.fused:
        key = "bfloat16" if p.precision == "bf16" else "float16"
        buffers["keys"] = Buffer((p.pieces, p.all_tokens, p.heads * p.key_step), key)
        buffers["keys_rot"] = Buffer((p.pieces, p.all_tokens, p.hidden), key)
        buffers["weighted"] = Buffer((p.weighted_pieces, p.all_tokens, p.hidden), "bfloat16")
        buffers |= {"inverse_q": Buffer((p.all_tokens,), "float32"), "decay": Buffer((frames,), "float32")}
        buffers |= {} if p.summed else {"root": Buffer((p.heads, p.all_tokens), "float32")}
    return buffers


def calls(p: Problem, launch: Launch) -> list[Call]:
    """The launches in order."""
    p = replace(p, threefold=launch.threefold)
    # As many programs of one chain as of two.
    rows = max(NARROWEST, p.value_pad * p.chains // (2 * launch.scan.size))
    reading = launch.readout if p.joined else launch.apart or launch.readout
    blocks = -(-p.tokens // reading.size)
    splits = min(blocks, -(-launch.programs // p.all_frames))
    scan = {"p": p, "ROWS": rows, "STAGES": launch.scan.stages}
    readout = {"epsilon": EPSILON, "p": p, "TOKENS": reading.size, "SPLITS": splits}
    summing = launch.fused or launch.summaries if p.fused else launch.summaries
    listed = [
        _call("summaries", (p.all_frames, 2, 1), summing, {"p": p, "TOKENS": summing.size}),
        _call("scan", (p.streams, p.value_pad // rows + 1, p.chains), launch.scan, scan),
        _call("readout", (p.all_frames, splits, 1), reading, readout),
    ]
    return [_prepare(p), *listed] if p.fused else listed


def _call(kernel: str, grid: tuple[int, int, int], phase: Phase, constants: Mapping[str, Any]) -> Call:
    return Call(kernel, grid, phase.warps, phase.stages, constants, phase.registers)


def _prepare(p: Problem) -> Call:
    return Call("prepare", (p.all_tokens, 2, 1), PREPARE_WARPS, 1, {"epsilon": NORM_EPSILON, "p": p})
