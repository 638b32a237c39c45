"""The GDN operator as a node of a graph: names, types and shapes of its tensors, and its serialised kernels.

Nothing here knows TensorRT: a plugin in another language needs the same rules and reads the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod

from sana_kernels.aot import Cubin, compile_call
from sana_kernels.calls import calls, workspace
from sana_kernels.errors import KernelError
from sana_kernels.launch import launch_for
from sana_kernels.problem import Problem, Rows

DOMAIN, NAME, VERSION = "sana", "SanaGDN", "1"
INPUTS = ("q", "k", "v", "q_rot", "k_rot", "beta", "decay", "state_kv", "state_z")
OUTPUTS = ("out", "final_kv", "final_z")
TOKENS = ("q", "k", "v", "q_rot", "k_rot", "beta", "out")
"""Tensors that share one floating type; the others are float32."""

STATELESS = 7
"""Inputs of a node without a carried state."""

BYTES = {"float32": 4, "bfloat16": 2}
ALIGNMENT = 256
HEADER = 8

Shape = tuple[int, ...]


def output_shapes(inputs: Sequence[Sequence[int]]) -> tuple[Shape, Shape, Shape]:
    """Of out (B, h, T, S, dv), final_kv (B, h, dv, dk) and final_z (B, h, dk)."""
    (batch, heads, *_, keys), values = inputs[1], inputs[2][-1]
    return tuple(inputs[2]), (batch, heads, values, keys), (batch, heads, keys)


def problem(shapes: Sequence[Shape], precision: str) -> Problem:
    """Of a node whose inputs have static `shapes`. Raises KernelError if they do not belong together."""
    batch, heads, frames, tokens, keys = shapes[0]
    values = shapes[2][-1]
    per_frame = batch, heads, frames
    per_key, per_value = (*per_frame, tokens, keys), (*per_frame, tokens, values)
    wanted = [per_key, per_key, per_value, per_key, per_key, (*per_frame, tokens), per_frame]
    wanted += [(batch, heads, values, keys), (batch, heads, keys)][: len(shapes) - STATELESS]
    for name, shape, expected in zip(INPUTS, shapes, wanted, strict=False):
        if tuple(shape) != expected:
            raise KernelError(f"{NAME}: {name} has shape {tuple(shape)}, expected {expected}")
    if len(shapes) not in (STATELESS, len(INPUTS)):
        raise KernelError(f"{NAME} has {len(shapes)} inputs, expected {STATELESS} or {len(INPUTS)}")
    rows = Rows(q=keys, k=keys, v=values, beta=1)
    return Problem(batch, heads, frames, tokens, keys, values, precision, len(shapes) > STATELESS, rows)


def tensor_types(p: Problem, token_type: str) -> dict[str, str]:
    """Types of everything that the kernels of a node touch."""
    named = INPUTS if p.carried else INPUTS[:STATELESS]
    types = {name: token_type if name in TOKENS else "float32" for name in (*named, *OUTPUTS)}
    return types | {name: buffer.dtype for name, buffer in workspace(p).items()}


def workspace_offsets(p: Problem) -> tuple[dict[str, int], int]:
    """Where each buffer lies in one block of memory, and the size of the block in bytes."""
    offsets, end = {}, 0
    for name, buffer in workspace(p).items():
        offsets[name] = end
        end += -(-prod(buffer.shape) * BYTES[buffer.dtype] // ALIGNMENT) * ALIGNMENT
    return offsets, end


@dataclass(frozen=True)
class Program:
    """The kernels of a node per architecture (SM), in the order of their launch, and the workspace between them."""

    precision: str
    cubins: Mapping[int, tuple[Cubin, ...]]
    offsets: Mapping[str, int]

    def pack(self) -> bytes:
        """Length of a JSON header (8 bytes, little endian), the header, and the machine code in its order."""
        entries = [
            {"sm": sm, **asdict(cubin), "code": len(cubin.code)} for sm, row in self.cubins.items() for cubin in row
        ]
        header = json.dumps({"precision": self.precision, "offsets": dict(self.offsets), "cubins": entries}).encode()
        code = b"".join(cubin.code for row in self.cubins.values() for cubin in row)
        return len(header).to_bytes(HEADER, "little") + header + code

    @staticmethod
    def unpack(data: bytes) -> "Program":
        end = HEADER + int.from_bytes(data[:HEADER], "little")
        header = json.loads(data[HEADER:end])
        cubins: dict[int, tuple[Cubin, ...]] = {}
        for entry in header["cubins"]:
            sm, size = entry.pop("sm"), entry.pop("code")
            tensors, grid = tuple(entry.pop("tensors")), tuple(entry.pop("grid"))
            cubin = Cubin(**entry, code=data[end : end + size], tensors=tensors, grid=grid)
            cubins[sm] = (*cubins.get(sm, ()), cubin)
            end += size
        return Program(header["precision"], cubins, header["offsets"])


def compile_program(p: Problem, token_type: str, architectures: Sequence[int]) -> Program:
    """Compile the kernels of a node for every architecture of an engine."""
    types = tensor_types(p, token_type)
    cubins = {
        sm: tuple(compile_call(call, types, sm) for call in calls(p, launch_for(sm, p.precision)))
        for sm in architectures
    }
    return Program(p.precision, cubins, workspace_offsets(p)[0])
