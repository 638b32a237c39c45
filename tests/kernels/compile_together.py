"""Launch kernels in a block that compiles them ahead, for a card that is not there: `compile_together.py`, prints JSON.

A program of its own, because Triton cannot compile in a process that interprets.
"""

import json
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from sana_kernels import address_ops, conv, conv_ops, dit_launcher, launcher
from sana_kernels.conv_problem import Fill, Patches, Winograd

SM = 90
UNTOUCHED = 7.0


@triton.jit
def impossible():
    tl.static_assert(False, "no card can do this")


class Absent:
    """What Triton asks of the driver of a card before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", SM, 32)


def pretend() -> None:
    driver.set_active(Absent())
    torch.cuda.device_of = lambda tensor: nullcontext()  # type: ignore[assignment, misc]
    for module in (address_ops, conv, conv_ops, dit_launcher):
        module.architecture = lambda device: SM  # type: ignore[attr-defined]


def launch_some() -> torch.Tensor:
    """A kernel of every file; returns a tensor that one of them would write."""
    p = Winograd(2, 10, 10, 128, 128, 0, 2 * 9 + 256)
    summed = Fill("sum", 2, 8, 8, 128, 2, 1, True, True, True)
    y, bias = torch.zeros(2, 8, 8, 128, dtype=torch.bfloat16), torch.zeros(128)
    buffer = torch.full(summed.buffer_shape, UNTOUCHED, dtype=torch.bfloat16)
    conv_ops.run_fill(summed, y, bias, y, buffer, y)
    conv_ops.run_pixels(Patches(1, 4, 4, 4), torch.zeros(1, 4, 4, 48, dtype=torch.bfloat16), torch.zeros(48))
    u = conv.run_fold_weights(torch.zeros(9, 128, 3, 128, dtype=torch.float16))
    v = conv.run_fold(p, torch.zeros(4, 10, 10, 128, dtype=torch.bfloat16), torch.float16)
    m = torch.zeros(36, p.product_rows, 128, dtype=torch.float16)
    conv.run_product(p, v, u, m, 0, conv.tile_for(p, SM))
    x = torch.zeros(1, 8, 224, dtype=torch.bfloat16)
    dit_launcher.run_residual_norm(x, x, None, None, None, None, None, 1, True, True, None)
    address_ops.run_move(x, torch.zeros(1, dtype=torch.int64), 0, 0, there=True)
    address_ops.run_moves(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64), aligned=True)
    return buffer


def compiled() -> dict[str, int]:
    """Bytes of machine code by kernel, as Triton will find them at the next launch."""
    from sana_kernels import by_address, conv_fill, conv_winograd, rows

    modules = by_address, conv_fill, conv_winograd, rows
    kernels = {name: item for module in modules for name, item in vars(module).items()}
    caches = {name: item.device_caches for name, item in kernels.items() if isinstance(item, triton.JITFunction)}
    return {name: len(code.asm["cubin"]) for name, cache in caches.items() if cache for code in cache[0][0].values()}


def main() -> None:
    pretend()
    with launcher.compiled_ahead() as missing:
        buffer = launch_some()
    with launcher.compiled_ahead(strict=False):
        launcher.start(impossible, (1,))
    refused = ""
    try:
        with launcher.compiled_ahead():
            launcher.start(impossible, (1,))
    except triton.CompilationError as error:
        refused = str(error)
    untouched = bool((buffer == UNTOUCHED).all())
    print(json.dumps({"compiled": compiled(), "missing": missing, "untouched": untouched, "refused": refused}))


if __name__ == "__main__":
    main()
