"""Export two GDN cores, build an engine for SM120 with the plugin, print its layers as JSON: `build_plugin.py FOLDER`.

A program of its own: a build wants its own logger, and Triton cannot compile in a process that interprets.
"""

import json
import re
import sys
from pathlib import Path

import onnx_ir as ir
import tensorrt_rtx as trt
import torch
from torch import Tensor

from sana_kernels import plugin
from sana_kernels.naive import State
from sana_kernels.node import HEADER, Program
from sana_kernels.onnx_plugin import gdn_node

LAYER = re.compile(r"^Name: .*?, LayerType: (\w+).*\[ONNX Layer: ([^\]]*)\]", re.MULTILINE)


class Cores(torch.nn.Module):
    """A core with a carried state and one without, in a little arithmetic."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *operands, kv, z = tensors
        options = {"precision": "bf16", "architectures": (120,)}
        out, state = gdn_node(*operands, State(kv, z), **options)
        again, last = gdn_node(*operands[:2], torch.relu(out), *operands[3:], None, **options)
        return again + 1, state.kv, last.z


class Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.lines.append(message)
        if severity <= trt.ILogger.Severity.ERROR:
            print(message, file=sys.stderr)


def export(path: Path) -> None:
    heads, frames, tokens, width = 20, 3, 880, 112
    operands = [torch.zeros(1, heads, frames, tokens, width) for _ in range(5)]
    gates = torch.zeros(1, heads, frames, tokens), torch.zeros(1, heads, frames)
    state = torch.zeros(1, heads, width, width), torch.zeros(1, heads, width)
    program = torch.onnx.export(
        Cores().eval(), (*operands, *gates, *state), dynamo=True, opset_version=23, verbose=False
    )
    ir.save(program.model, path)


def build(path: Path) -> dict:
    log = Log()
    plugin.register()
    builder = trt.Builder(log)
    network = builder.create_network()
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        sys.exit("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0
    plan = bytes(builder.build_serialized_network(network, config))
    layers = [(match[1], match[2]) for match in LAYER.finditer("\n".join(log.lines))]
    # The builder may leave a copy more in the plan.
    starts = [match.start() - HEADER for match in re.finditer(rb'\{"precision"', plan)]
    return {"layers": layers, "programs": sorted({describe(Program.unpack(plan[start:])) for start in starts})}


def describe(program: Program) -> str:
    """What a plan holds for a core: SM, kernels, and whether they read a carried state."""
    return "; ".join(
        f"sm_{sm}: {' '.join(cubin.entry for cubin in row)}{', carried' * any('state_z' in c.tensors for c in row)}"
        for sm, row in program.cubins.items()
    )


if __name__ == "__main__":
    path = Path(sys.argv[1]) / "cores.onnx"
    export(path)
    print(json.dumps(build(path)))
