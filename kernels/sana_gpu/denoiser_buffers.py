"""Tensors that a chunk's graph reads and writes, at fixed places, and what goes in and out of them per stream."""

import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sana_gpu.denoiser_layout import Layout
from sana_gpu.dit_blocks import Past
from sana_runtime.state import IN, OUT
from sana_runtime.tensors import TensorSpec

WINDOW = (".sink_", ".recent_")

LASTING = (".sink_", ".text_")
"""State that is the same tensor in every chunk of a stream."""

Tensors = dict[str, Tensor]
Pair = tuple[Tensor, Tensor]
"""Where something is copied to, and what."""


def copy(pairs: Sequence[Pair]) -> None:
    """All copies of one type at once: a launch for each would take longer than the copies."""
    groups: defaultdict[torch.dtype, list[Pair]] = defaultdict(list)
    for target, source in pairs:
        if target.numel():
            groups[target.dtype].append((target, source))
    for group in groups.values():
        targets, sources = zip(*group, strict=True)
        torch._foreach_copy_(targets, sources)


class Buffers:
    """Room for `streams` streams in one kind of chunk.

    A softmax block's window (B, W, C) is in this order: the first chunk, the recent ones that there are, this one.
    So what is valid lies together, and attention needs no mask.
    """

    def __init__(self, layout: Layout, inputs: Sequence[TensorSpec], steady: bool, streams: int, device: str) -> None:
        self._layout, self._steady = layout, steady
        self._tensors = {
            spec.name: torch.zeros(streams, *spec.shape[1:], dtype=getattr(torch, spec.dtype), device=device)
            for spec in inputs
            if spec.name not in ("frame_start", "recent_valid") and not any(part in spec.name for part in WINDOW)
        }
        self._tensors["frame_start"] = torch.zeros(streams, dtype=torch.int64, device=device)
        shape = streams, layout.sink + (layout.window * layout.chunk if steady else 0), layout.hidden
        self._windows = {
            f"block{block:02d}.{slot}_{kind}": torch.zeros(shape, dtype=getattr(torch, layout.dtype), device=device)
            for block, gdn in enumerate(layout.gdn)
            for slot in ("recent" if steady else "sink",)
            for kind in "kv"
            if not gdn
        }
        self._lying: dict[tuple[str, int], weakref.ref[Tensor]] = {}

    def tensor(self, name: str, count: int) -> Tensor:
        """What the first `count` streams have as their input `name`."""
        return self._tensors[name][:count]

    def pasts(self, count: int, recent: int) -> list[Past]:
        """What the blocks read, where every one of `count` streams sees `recent` recent chunks."""
        return [self._past(f"block{block:02d}", count, recent) for block in range(len(self._layout.gdn))]

    def _past(self, block: str, count: int, recent: int) -> Past:
        names = {f"text_{kind}": f"{block}.text_{kind}" for kind in "kv"}
        names |= {"tail": f"{block}.tconv{IN}", "state_kv": f"{block}.state_kv{IN}", "state_z": f"{block}.state_z{IN}"}
        found = {field: self._tensors[name][:count] for field, name in names.items() if name in self._tensors}
        windows = [window[:count] for name, window in self._windows.items() if name.startswith(block)]
        return Past(**found, **dict(zip(("keys", "values"), windows, strict=False)), start=self._own(recent).start)

    def _own(self, recent: int) -> slice:
        """Rows of the chunk itself."""
        layout = self._layout
        start = layout.sink + recent * layout.chunk if self._steady else 0
        return slice(start, start + (layout.chunk if self._steady else layout.sink))

    def load(self, feeds: Sequence[Mapping[str, Tensor]], recent: int, starts: Sequence[int]) -> None:
        """Put what the streams are fed to its places, and the frames they start at.

        A prompt or a sink that lies there already stays.
        """
        for index, start in enumerate(starts):
            # A kernel that fills, as a copy from the host would wait for the GPU.
            self._tensors["frame_start"][index].fill_(start)
        places = {(name, index): tensor for index, one in enumerate(feeds) for name, tensor in one.items()}
        moving = {place: tensor for place, tensor in places.items() if not self._lies(place, tensor)}
        copy([pair for (name, index), tensor in moving.items() for pair in self._places(name, tensor, index, recent)])
        self._lying |= {place: weakref.ref(tensor) for place, tensor in moving.items()}

    def _lies(self, place: tuple[str, int], tensor: Tensor) -> bool:
        """Whether this tensor, which nobody changes, was the last to be put there."""
        before = self._lying.get(place)
        return any(part in place[0] for part in LASTING) and before is not None and before() is tensor

    def _places(self, name: str, tensor: Tensor, index: int, recent: int) -> list[Pair]:
        """Where a feed goes; of recent chunks only those that there are."""
        if name in self._tensors:
            return [(self._tensors[name][index], tensor[0])]
        sink, rows = self._layout.sink, recent * self._layout.chunk
        if ".sink_" in name:
            window = self._windows[name.removesuffix(IN).replace(".sink_", ".recent_")][index]
            return [(self._heads(window[:sink]), tensor[0])]
        window = self._windows[name.removesuffix(IN)][index]
        return [(self._heads(window[sink : sink + rows]), tensor[0][:, tensor.shape[2] - rows :])]

    def results(self, index: int, feeds: Mapping[str, Tensor], made: Mapping[str, Tensor], recent: int) -> Tensors:
        """Copies of what one stream has `made` (B, ...), and the keys and values that it has from now on.

        Recent slots lose their oldest chunk and get this one as their last.
        """
        found = {name: tensor[index : index + 1] for name, tensor in made.items()}
        pairs = [(torch.empty_like(tensor), tensor) for tensor in found.values()]
        results = dict(zip(found, (target for target, _ in pairs), strict=True))
        for name, window in self._windows.items():
            own = self._heads(window[index, self._own(recent)])[None]
            older = feeds[name + IN][:, :, self._layout.chunk :] if self._steady else own[:, :, :0]
            # Token-major like the window, so that the copies back into it are straight ones.
            rows = own.new_empty(1, older.shape[2] + own.shape[2], self._layout.hidden)
            results[name + OUT] = self._heads(rows[0])[None]
            pairs += zip(results[name + OUT].split([older.shape[2], own.shape[2]], dim=2), (older, own), strict=True)
        copy(pairs)
        return results

    def _heads(self, rows: Tensor) -> Tensor:
        """(N, C) as (h, N, d)."""
        return rows.unflatten(-1, (self._layout.heads, -1)).transpose(0, 1)
