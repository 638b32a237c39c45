"""Compile the kernels of the VAE's widest plane for one architecture: `compile_convolutions.py SM`, prints JSON.

A program of its own, because Triton cannot compile in a process that interprets.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sana_kernels import address_ops, by_address
from sana_kernels.conv import FOLD_WARPS, tile_for
from sana_kernels.conv_fill import fill, mirror, pixels
from sana_kernels.conv_ops import WARPS
from sana_kernels.conv_problem import Fill, Patches, Winograd
from sana_kernels.conv_winograd import fold, fold_weights, product, unfold

PRODUCT = Winograd(24, 178, 322, 128, 128, 0, 24 * 3520 + 256)
SUM = Fill("sum", 24, 176, 320, 128, 2, 1, True, True, True)
UNFOLD = Fill("sum", 24, 176, 320, 128, 2, 1, True, True, True, folded_rows=PRODUCT.product_rows)
DOWN = Fill("down", 24, 88, 160, 256, 2, 0, True, True, True, 1, 2, 2, 0, 128)
UP = Fill("up", 24, 176, 320, 128, 2, 1, True, True, True, 2, 2, 2, 0, 256, 1)
POINTERS = {
    "buffer_ptr": "*bf16", "kept_ptr": "*bf16", "y_ptr": "*bf16", "skip_ptr": "*bf16", "bias_ptr": "*fp32",
    "m_ptr": "*fp16", "v_ptr": "*fp16", "u_ptr": "*fp16", "w_ptr": "*fp16", "x_ptr": "*bf16", "frames_ptr": "*u8",
    "first": "i32", "into_ptr": "*bf16", "from_ptr": "*bf16", "table_ptr": "*i64", "moves_ptr": "*i64", "slot": "i32",
    "offset": "i32", "size": "i32",
}  # fmt: skip


def shared(kernel: Any, sm: int, constants: Mapping[str, Any], warps: int, stages: int = 1, **tensors: str) -> int:
    """Bytes of shared memory of one kernel."""
    types = {name: "constexpr" if name in constants else {**POINTERS, **tensors}[name] for name in kernel.arg_names}
    named = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return triton.compile(
        ASTSource(kernel, types, named, aligned), target=GPUTarget("cuda", sm, 32), options=options
    ).metadata.shared


def compiled(sm: int) -> dict[str, int]:
    tile = tile_for(PRODUCT, sm)
    sizes = {"ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "PARTS": tile.parts, "PROGRAMS": 132}
    descriptors = {
        "v_desc": f"tensordesc<fp16[{tile.rows},{tile.depth}]>",
        "u_desc": f"tensordesc<fp16[{tile.columns},{tile.depth}]>",
        "m_desc": f"tensordesc<fp16[{tile.rows},{tile.columns // tile.parts}]>",
    }
    fills = {"sum": SUM, "down": DOWN, "up": UP}
    return {
        "product": shared(product, sm, {"p": PRODUCT, **sizes}, tile.warps, tile.stages, **descriptors),
        "fold": shared(fold, sm, {"p": PRODUCT, "TILES": 4, "CHANNELS": 128}, FOLD_WARPS),
        "fold_weights": shared(fold_weights, sm, {"SIZE": 128 * 3 * 128, "BLOCK": 512}, FOLD_WARPS),
        "unfold": shared(unfold, sm, {"p": UNFOLD, "TILES": UNFOLD.tile_block}, UNFOLD.tile_warps),
        **{name: shared(fill, sm, {"p": p, "PIXELS": p.block}, WARPS) for name, p in fills.items()},
        "mirror": shared(mirror, sm, {"p": SUM, "PIXELS": SUM.block}, WARPS),
        "fetch": shared(by_address.fetch, sm, {"BLOCK": address_ops.BLOCK}, address_ops.WARPS),
        "leave": shared(by_address.leave, sm, {"BLOCK": address_ops.BLOCK}, address_ops.WARPS),
        "move": shared(by_address.move, sm, {"BLOCK": address_ops.PIECE // 2, "ALIGNED": True}, 2 * address_ops.WARPS),
        "pixels": shared(pixels, sm, {"p": Patches(24, 176, 320, 4), "BLOCK": 2048}, WARPS),
    }


if __name__ == "__main__":
    print(json.dumps(compiled(int(sys.argv[1]))))
