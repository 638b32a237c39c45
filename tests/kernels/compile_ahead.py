"""Compile every kernel of a production chunk for one architecture: `compile_ahead.py SM FRAMES PRECISION`, prints JSON.

A program of its own, because Triton cannot compile in a process that interprets.
"""

import json
import sys

from sana_kernels.aot import compile_call
from sana_kernels.calls import calls, workspace
from sana_kernels.launch import launch_for
from sana_kernels.problem import Problem, Rows

PROJECTIONS = ("q", "k", "v", "gate", "beta", "rate", "out")
FLOATS = ("q_weight", "k_weight", "rate_bias", "a_log", "state_kv", "state_z", "final_kv", "final_z")


def compiled(sm: int, frames: int, precision: str) -> list[dict]:
    rows = Rows(q=8960, k=8960, v=8960, beta=40, gate=8960, rate=40)
    problem = Problem(1, 20, frames, 880, 112, 112, precision, True, rows, fused=True)
    dtypes = {name: buffer.dtype for name, buffer in workspace(problem).items()}
    dtypes |= dict.fromkeys(PROJECTIONS, "bfloat16") | dict.fromkeys(FLOATS, "float32")
    dtypes["rope"] = "float16"
    cubins = [compile_call(call, dtypes, sm) for call in calls(problem, launch_for(sm, precision))]
    return [{"entry": cubin.entry, "shared": cubin.shared, "bytes": len(cubin.code)} for cubin in cubins]


if __name__ == "__main__":
    print(json.dumps(compiled(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
