"""Golden sections of single layers and tables: GDN (c), softmax and blocks (d), FFN (e), and tables (i)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sana_export.attention import GDNAttention, Operands, padding_bias
from sana_export.caches import Cache, GDNCache, KVCache
from sana_export.dit import Block, DiT, sinusoid
from sana_export.ffn import Grid
from sana_export.golden import Check, GoldenArrays, load_dit
from sana_export.golden_dit import FORWARD_LIMIT, SCHEDULE_LIMIT
from sana_export.rope import Rope, rope_angles, rope_rows
from sana_kernels.naive import State, frame_updates, read, scan, scan_backward
from sana_runtime.geometry import clip_boundaries
from sana_runtime.schedule import streaming_schedule

TABLE_LIMIT = 1e-9


class LayerCase:
    """What sections c, d and e share: tokens x and x2, their grids, and rotary rows at the recorded positions."""

    def __init__(self, arrays: GoldenArrays, head_dim: int) -> None:
        self.arrays, self.head_dim = arrays, head_dim
        _, self.height, self.width = arrays["HW"].tolist()
        found = arrays.matching(r"rope_pos(\d+)_(\d+)")
        self.positions = {match[0]: range(int(match[1]), int(match[2])) for match in found}

    def grid(self, x: Tensor) -> Grid:
        return x.shape[1] // (self.height * self.width), self.height, self.width

    def rope(self, x: Tensor, call: int) -> Rope:
        """Rows of x at the start of the first (0) or second (1) recorded range."""
        start = sorted(span.start for span in self.positions.values())[call]
        frames = range(start, start + self.grid(x)[0])
        return rope_rows(self.head_dim, frames, self.height, self.width)

    def tables(self) -> Iterator[Check]:
        for name, frames in self.positions.items():
            rows = complex_rows(rope_angles(self.head_dim, frames, self.height, self.width))
            yield self.arrays.check(name, rows, TABLE_LIMIT)


def block_at(dit: DiT, index: int) -> Block:
    return cast(Block, dit.blocks[index])


def complex_rows(angles: np.ndarray) -> Tensor:
    """(rows, pairs, 2) of cosine and sine in float64."""
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=-1))


def section_c(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """The GDN attention of block 0: fresh, on a carried state, on fewer frames, and every tensor inside."""
    arrays = GoldenArrays(directory / "c_gdn_layer.npz")
    streaming, bidirectional = load_dit(directory, config, True), load_dit(directory, config, False)
    case, attention = LayerCase(arrays, streaming.config.head_dim), cast(GDNAttention, block_at(streaming, 0).attn)
    x, x2 = arrays["x"], arrays["x2"]
    state, found = gdn_call(case, attention, x, 0, None)
    yield from gdn_checks(arrays, "noinit", found)
    yield from gdn_checks(arrays, "init", gdn_call(case, attention, x2, 1, state)[1])
    for match in arrays.matching(r"(init_T(\d+))\.out"):
        tokens = int(match[2]) * case.height * case.width
        yield from gdn_checks(arrays, match[1], gdn_call(case, attention, x2[:, :tokens], 1, state)[1])
    out, _ = block_at(bidirectional, 0).attn(x, case.grid(x)[0], case.rope(x, 0), None, None)
    yield arrays.check("bidirectional.out", out, FORWARD_LIMIT)
    yield from case.tables()
    yield from arrays.uncovered()


def gdn_call(
    case: LayerCase, attention: GDNAttention, x: Tensor, call: int, past: State | None
) -> tuple[State, dict[str, Tensor]]:
    """The state a GDN attention leaves, and everything recorded about the call in the golden layouts."""
    frames, rope = case.grid(x)[0], case.rope(x, call)
    cache = None if past is None else GDNCache(past.kv, past.z, x.new_empty(0))
    out, state = attention(x, frames, rope, cache, None)
    core = gdn_core(attention.operands(x, frames, rope), past)
    found = {f"core.{name}": tensor for name, tensor in core.items()}
    return state, {"out": out, "state_kv": state.kv, "state_z": state.z, **found}


def gdn_core(operands: Operands, past: State | None) -> dict[str, Tensor]:
    """Tensors inside the recurrence, tokens last; those of the backward scan start at the last frame."""
    q, k, v, q_rot, k_rot, beta, decay = operands
    tokens = {"q": q, "k": k, "v": v, "q_rot": q_rot, "k_rot": k_rot}
    updates = frame_updates(k, v, k_rot, beta, decay)
    forward = scan(updates, past)
    nothing = State(torch.zeros_like(forward[0].kv), torch.zeros_like(forward[0].z))
    num, den = read(q, q_rot, forward)
    later_num, later_den = (y.flip(2) for y in read(q, q_rot, [*scan_backward(updates), nothing]))
    tokens |= {"num_fwd": num, "num_bwd_flipped": later_num}
    dens = {"den_fwd": den.flatten(2), "den_bwd_flipped": later_den.flatten(2)}
    gates = {"beta": beta.permute(0, 2, 3, 1), "decay": decay}
    return {name: tensor.flatten(2, 3).mT for name, tensor in tokens.items()} | dens | gates


def gdn_checks(arrays: GoldenArrays, prefix: str, found: dict[str, Tensor]) -> Iterator[Check]:
    """The core is recorded for some calls only."""
    for name, tensor in found.items():
        if f"{prefix}.{name}" in arrays or not name.startswith("core."):
            yield arrays.check(f"{prefix}.{name}", tensor, FORWARD_LIMIT)


def section_d(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """The softmax attention alone, and one whole block of either kind, over two chunks."""
    arrays = GoldenArrays(directory / "d_softmax_layer_and_blocks.npz")
    streaming, bidirectional = load_dit(directory, config, True), load_dit(directory, config, False)
    case, index = LayerCase(arrays, streaming.config.head_dim), int(arrays["block_index"])
    x, past = arrays["x"], None
    for call, (name, tokens) in enumerate({"first": x, "second": arrays["x2"]}.items()):
        grid, rope = case.grid(tokens), case.rope(tokens, call)
        out, (k, v) = block_at(streaming, index).attn(tokens, grid[0], rope, past, None)
        past = KVCache(k, v, tokens.new_empty(0))
        for part, tensor in {"out": out, "k": k.mT, "v": v.mT}.items():
            yield arrays.check(f"{name}.{part}", tensor, FORWARD_LIMIT)
    out, _ = block_at(bidirectional, index).attn(x, case.grid(x)[0], case.rope(x, 0), None, None)
    yield arrays.check("bidirectional.out", out, FORWARD_LIMIT)
    for kind, block in {"gdn_block": 0, "softmax_block": index}.items():
        yield from block_checks(case, kind, block_at(streaming, block))
    yield from case.tables()
    yield from arrays.uncovered()


def block_checks(case: LayerCase, kind: str, block: Block) -> Iterator[Check]:
    """A block on x and then, with the caches of that call, on x2."""
    arrays = case.arrays
    prompt = (*block.cross_attn.prompt(arrays[f"{kind}.y"][:, 0]), padding_bias(arrays[f"{kind}.mask"]))
    modulation = arrays[f"{kind}.t0"].unflatten(1, (6, -1))
    past: Cache | None = None
    for call, (name, x) in enumerate({"first": arrays["x"], "second": arrays["x2"]}.items()):
        out, past = block(x, modulation, prompt, case.grid(x), case.rope(x, call), past, None)
        yield arrays.check(f"{kind}.out_{name}", out, FORWARD_LIMIT)
    yield arrays.check(f"{kind}.cross_attn_out", block.cross_attn(arrays["x"], *prompt), FORWARD_LIMIT)


def section_e(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """The FFN with no tail, a carried one, and the last frame of a longer one."""
    arrays = GoldenArrays(directory / "e_ffn.npz")
    streaming, bidirectional = load_dit(directory, config, True), load_dit(directory, config, False)
    case, index = LayerCase(arrays, streaming.config.head_dim), int(arrays["block_index"])
    ffn, x, x2 = block_at(streaming, index).mlp, arrays["x"], arrays["x2"]
    first, tail = ffn(x, case.grid(x), None)
    longer, longer_tail = ffn(x2, case.grid(x2), arrays["multi.tconv_in"][:, :, -1].mT)
    found = {
        "first.out": first,
        "first.tconv": tail.mT,
        "second.out": ffn(x2, case.grid(x2), tail)[0],
        "multi.out": longer,
        "multi.tconv_out": longer_tail.mT,
        "nocache.out": first,
        "bidirectional.out": block_at(bidirectional, index).mlp(x, case.grid(x), None)[0],
    }
    for name, tensor in found.items():
        yield arrays.check(name, tensor, FORWARD_LIMIT)
    yield from arrays.uncovered()


def section_i(directory: Path, config: dict[str, Any]) -> Iterator[Check]:
    """Rotary rows, the timestep embedding, streaming schedules, and chunk boundaries."""
    arrays = GoldenArrays(directory / "i_tables.npz")
    for match in arrays.matching(r"rope_hd(\d+)_f(\d+)_(\d+)_h(\d+)_w(\d+)"):
        head_dim, start, stop, height, width = (int(number) for number in match.groups())
        rows = complex_rows(rope_angles(head_dim, range(start, stop), height, width))
        yield arrays.check(match[0], rows, TABLE_LIMIT)
    times = arrays["sinusoid256_t"]
    yield arrays.check("sinusoid256", sinusoid(times), sinusoid_limit(times))
    for match in arrays.matching(r"stream_(timesteps|sigmas)_(\d+)"):
        values = getattr(streaming_schedule(int(match[2])), match[1])
        yield arrays.check(match[0], torch.tensor(values), SCHEDULE_LIMIT)
    for match in arrays.matching(r"chunks_(\d+)"):
        boundaries = clip_boundaries(int(match[1]), config["streaming"]["base_chunk_frames"])
        yield arrays.check(match[0], torch.tensor(boundaries), 0.0)
    yield from arrays.uncovered()


def sinusoid_limit(times: Tensor) -> float:
    """One unit in the last place of a float32 frequency below 1, times the largest time.

    The frequencies are float32 exponentials, in which processors differ by that much.
    """
    return float(times.max()) * 2.0**-24
