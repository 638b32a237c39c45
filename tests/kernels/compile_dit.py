"""Compile the kernels around the gated delta network at production size for one architecture: `compile_dit.py SM`.

Prints JSON. A program of its own, because Triton cannot compile in a process that interprets.
"""

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sana_kernels import cross, depthwise, rows
from sana_kernels.dit_launch import LAUNCH
from sana_kernels.dit_shapes import CrossShape, ImageShape, RowShape

TOKENS, FRAMES, WIDTH, HEAD = 880, 3, 2240, 112
ROWS = RowShape(FRAMES * TOKENS, WIDTH, FRAMES, TOKENS, HEAD)
BF16, FP32, FP16, FP8 = "*bf16", "*fp32", "*fp16", "*fp8e4nv"
NORM = {"epsilon": 1e-6, "p": ROWS}
VECTORS = dict.fromkeys(("gate", "shift", "scale"), FP32)

CASES: list[tuple[Any, dict[str, str], dict[str, Any], int, int]] = [
    (
        rows.residual_norm,
        dict.fromkeys(("x", "y", "more", "tail", "x_out", "plain"), BF16) | VECTORS | {"fp8": FP8, "factor": "fp32"},
        {**NORM, "ROWS": LAUNCH.norm_rows},
        LAUNCH.norm_warps,
        1,
    ),
    (rows.stack_frames, {"x": BF16, "tail": BF16, "out": FP8, "factor": "fp32"}, {"p": ROWS}, LAUNCH.row_warps, 1),
    (rows.inverse_row_rms, {"x": BF16, "inverse": FP32}, NORM, LAUNCH.row_warps, 1),
    (
        rows.write_window,
        dict.fromkeys(("q", "k", "v", "keys", "values", "q_out"), BF16)
        | {"q_weight": FP32, "k_weight": FP32, "rope": FP16, "start": "i32"},
        {**NORM, "ROW": (8960, 8960, 8960), "WINDOW": 9680},
        LAUNCH.row_warps,
        1,
    ),
    (
        rows.gate_rows,
        {"x": BF16, "lse": FP32, "gate": BF16, "fp8": FP8, "factor": "fp32"},
        {"p": ROWS, "ROW": 8960, "PARTS": 4, "HEADS": 32, "HEAD": 128},
        LAUNCH.row_warps,
        1,
    ),
    (
        depthwise.depthwise_glu,
        {"wide": BF16, "weight": BF16, "bias": BF16, "plain": BF16, "factor": "fp32"},
        {
            "p": ImageShape(22, 40, 6720),
            "ROWS": LAUNCH.depthwise_rows,
            "COLUMNS": LAUNCH.depthwise_columns,
            "CHANNELS": LAUNCH.depthwise_channels,
            "STAGES": LAUNCH.depthwise_stages,
            "FAST": True,
        },
        LAUNCH.depthwise_warps,
        1,
    ),
    (
        cross.cross_attention,
        dict.fromkeys(("q", "k", "v", "plain"), BF16)
        | {"inverse": FP32, "bias": FP32, "used": "*i32", "factor": "fp32"},
        {
            "p": CrossShape(20, HEAD, FRAMES * TOKENS, 300),
            "QUERIES": LAUNCH.cross_queries,
            "KEYS": LAUNCH.cross_keys,
        },
        LAUNCH.cross_warps,
        LAUNCH.cross_stages,
    ),
]
"""Kernel, types of the tensors that it is given, constants, warps, stages."""


def shared_memory(case: tuple[Any, dict[str, str], dict[str, Any], int, int], sm: int) -> int:
    kernel, types, constants, warps, stages = case
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    absent = {name: constants.get(name) for name, kind in signature.items() if kind == "constexpr"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, absent, aligned)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options).metadata.shared


if __name__ == "__main__":
    print(json.dumps({case[0].__name__: shared_memory(case, int(sys.argv[1])) for case in CASES}))
