"""Kernels compiled ahead for one architecture, without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass

from sana_kernels.calls import Call
from sana_kernels.errors import KernelError

TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}

SHARED_LIMITS = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376, 121: 101376}
"""Bytes of shared memory that one block may have (CUDA programming guide, compute capabilities)."""


@dataclass(frozen=True)
class Cubin:
    """Machine code of one call. Its parameters are `tensors` in this order, then two null pointers."""

    entry: str
    code: bytes
    tensors: tuple[str, ...]
    grid: tuple[int, int, int]
    threads: int
    shared: int


def compile_call(call: Call, dtypes: Mapping[str, str], sm: int) -> Cubin:
    """Compile a call whose tensors have `dtypes` by name; a tensor parameter that is not among them is absent.

    Raises KernelError for what the card cannot hold.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sana_kernels.kernels import KERNELS

    kernel = KERNELS[call.kernel]
    types = {name: TYPES[dtypes[name]] if name in dtypes else "constexpr" for name in kernel.arg_names}
    constants = {name: call.constants.get(name) for name, kind in types.items() if kind == "constexpr"}
    # PyTorch and TensorRT both align far more than this.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind != "constexpr"}
    compiled = triton.compile(
        ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", sm, 32), options=call.options
    )
    meta = compiled.metadata
    if meta.shared > SHARED_LIMITS[sm]:
        raise KernelError(f"{call.kernel} needs {meta.shared} bytes of shared memory, sm_{sm} has {SHARED_LIMITS[sm]}")
    if meta.global_scratch_size or meta.profile_scratch_size:
        raise KernelError(f"{call.kernel} for sm_{sm} needs scratch memory, which a launch from a cubin has none of")
    tensors = tuple(name for name in kernel.arg_names if name in dtypes)
    return Cubin(meta.name, compiled.asm["cubin"], tensors, call.grid, 32 * call.warps, meta.shared)
