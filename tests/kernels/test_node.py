"""The GDN node of an engine: its shapes, its serialised kernels, and what it launches."""

import ctypes
from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from gdn_cases import carried, off, operands
from torch import Tensor

from sana_kernels import driver, naive, node
from sana_kernels.aot import Cubin
from sana_kernels.calls import Call, calls, workspace
from sana_kernels.driver import Kernel
from sana_kernels.errors import KernelError
from sana_kernels.kernels import KERNELS
from sana_kernels.launch import launch_for
from sana_kernels.problem import Problem

SHAPE = (1, 2, 2, 21, 16, 24)


def input_shapes(stateless: bool = False) -> list[tuple[int, ...]]:
    state = carried(SHAPE)
    shapes = [tuple(tensor.shape) for tensor in (*operands(SHAPE), *state)]
    return shapes[: node.STATELESS] if stateless else shapes


def test_problem_and_results_follow_the_inputs() -> None:
    problem = node.problem(input_shapes(), "tf32")
    sizes = (problem.batch, problem.heads, problem.frames, problem.tokens, problem.key_dim, problem.value_dim)
    assert sizes == SHAPE
    assert problem.carried
    assert not node.problem(input_shapes(stateless=True), "tf32").carried
    assert node.output_shapes(input_shapes()) == ((1, 2, 2, 21, 24), (1, 2, 24, 16), (1, 2, 16))


def test_a_wrong_input_is_refused_by_name() -> None:
    shapes = input_shapes()
    shapes[node.INPUTS.index("k_rot")] = (1, 2, 2, 21, 8)
    with pytest.raises(KernelError, match=r"SanaGDN: k_rot has shape \(1, 2, 2, 21, 8\), expected \(1, 2, 2, 21, 16\)"):
        node.problem(shapes, "bf16")
    with pytest.raises(KernelError, match="SanaGDN has 8 inputs, expected 7 or 9"):
        node.problem(input_shapes()[:8], "bf16")


def test_workspace_buffers_are_aligned_and_apart() -> None:
    problem = node.problem(input_shapes(), "bf16")
    offsets, size = node.workspace_offsets(problem)
    buffers = workspace(problem)
    ends = {name: offsets[name] + prod(buffers[name].shape) * node.BYTES[buffers[name].dtype] for name in offsets}
    order = sorted(offsets, key=lambda name: offsets[name])
    assert all(offset % node.ALIGNMENT == 0 for offset in offsets.values())
    assert all(ends[a] <= offsets[b] for a, b in pairwise(order))
    assert max(ends.values()) <= size


def test_a_program_survives_packing() -> None:
    one = Cubin("scan", b"\x7fELF\x00one", ("q", "out"), (3, 2, 1), 128, 4096)
    two = Cubin("readout", b"", ("k",), (1, 1, 1), 64, 0)
    program = node.Program("tf32", {120: (one, two), 121: (two,)}, {"decay": 256})
    assert node.Program.unpack(program.pack()) == program


class InterpretedDriver:
    """A CUDA driver whose device memory is the host's, and whose kernels run in Triton's interpreter."""

    def __init__(self, problem: Problem, listed: list[Call], sizes: dict[str, int]) -> None:
        self.calls = {call.kernel: call for call in listed}
        self.types, self.sizes = node.tensor_types(problem, "float32"), sizes
        self.modules: list[str] = []
        self.streams: list[int] = []

    def cuModuleLoadData(self, module: ctypes.c_void_p, code: bytes) -> int:
        self.modules.append(code.decode())
        module._obj.value = len(self.modules)
        return 0

    def cuModuleGetFunction(self, function: ctypes.c_void_p, module: ctypes.c_void_p, name: bytes) -> int:
        assert self.modules[module.value - 1] == name.decode()
        function._obj.value = module.value
        return 0

    def cuFuncSetAttribute(self, _function: ctypes.c_void_p, attribute: int, shared: int) -> int:
        assert attribute == driver.MAX_DYNAMIC_SHARED
        return 0 if shared < 100_000 else 1

    def cuGetErrorString(self, status: int, text: ctypes.c_char_p) -> int:
        text._obj.value = b"invalid argument" if status == 1 else None
        return 0

    def cuLaunchKernel(self, function: ctypes.c_void_p, *rest: Any) -> int:
        grid, stream, addresses = rest[:3], rest[7], rest[8]
        self.streams.append(stream.value)
        call = self.calls[self.modules[function.value - 1]]
        kernel = KERNELS[call.kernel]
        names = [name for name in kernel.arg_names if name in self.types]
        pointers = [ctypes.c_void_p.from_address(address).value for address in addresses]
        assert pointers[len(names) :] == [None, None]
        tensors = {name: self.tensor(name, pointer) for name, pointer in zip(names, pointers, strict=False)}
        absent = {name: None for name in kernel.arg_names if name not in names and name not in call.constants}
        kernel[grid](**tensors, **absent, **call.constants)
        return 0

    def tensor(self, name: str, pointer: int) -> Tensor:
        kind = getattr(torch, self.types[name])
        memory = (ctypes.c_char * (self.sizes[name] * kind.itemsize)).from_address(pointer)
        return torch.frombuffer(memory, dtype=kind)


@pytest.mark.usefixtures("device")
def test_the_launches_of_a_node_give_the_reference() -> None:
    state = carried(SHAPE)
    exact = [*operands(SHAPE), *state]
    inputs = dict(zip(node.INPUTS, (x.float().contiguous() for x in exact), strict=True))
    problem = node.problem([tuple(x.shape) for x in exact], "fp32")
    results = [torch.empty(shape) for shape in node.output_shapes([x.shape for x in exact])]
    offsets, size = node.workspace_offsets(problem)
    memory = torch.full((size,), 255, dtype=torch.uint8)
    placed = inputs | dict(zip(node.OUTPUTS, results, strict=True))
    pointers = {name: x.data_ptr() for name, x in placed.items()}
    pointers |= {name: memory.data_ptr() + offset for name, offset in offsets.items()}
    sizes = {name: x.numel() for name, x in placed.items()}
    sizes |= {name: prod(buffer.shape) for name, buffer in workspace(problem).items()}
    listed = calls(problem, launch_for(120, "fp32"))
    library = InterpretedDriver(problem, listed, sizes)
    for call in listed:
        names = tuple(name for name in KERNELS[call.kernel].arg_names if name in pointers)
        cubin = Cubin(call.kernel, call.kernel.encode(), names, call.grid, 32 * call.warps, 0)
        Kernel(library, cubin).launch([pointers[name] for name in names], stream=7)
    assert library.streams == [7, 7, 7]
    out, after = naive.gdn(*exact[: node.STATELESS], state)
    for got, wanted in zip(results, (out, *after), strict=True):
        assert off(got, wanted) < 2e-6


def test_a_refusal_of_the_driver_is_named() -> None:
    library = InterpretedDriver(node.problem(input_shapes(), "fp32"), [], {})
    with pytest.raises(
        KernelError, match=r"reserving 200000 bytes .* for scan failed: invalid argument \(CUDA error 1\)"
    ):
        Kernel(library, Cubin("scan", b"scan", (), (1, 1, 1), 32, 200_000))


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    driver.driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(KernelError, match=r"no CUDA driver on this machine: libcuda\.so\.1: cannot open"):
        driver.driver()
