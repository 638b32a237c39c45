"""Tensors that a chunk's graph computes in, at fixed places, and what goes in and out of them per stream."""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sana_gpu.addresses import Numbers
from sana_gpu.denoiser_layout import POSITION, Layout
from sana_gpu.dit_blocks import Past
from sana_kernels.address_ops import Move, move, rows_of
from sana_runtime.state import IN, OUT
from sana_runtime.tensors import TensorSpec

LASTING = {"prompt", "sink" + IN}
"""What is the same tensor in every chunk of a stream."""

Pair = tuple[Tensor, Tensor]
"""Where something is copied to, and what."""


def copy(pairs: Sequence[Pair]) -> None:
    """All copies of one type at once: a launch for each would take longer than the copies."""
    groups: defaultdict[torch.dtype, list[Pair]] = defaultdict(list)
    for target, source in pairs:
        groups[target.dtype].append((target, source))
    for group in groups.values():
        targets, sources = zip(*group, strict=True)
        torch._foreach_copy_(targets, sources)


class Room:
    """What first and later chunks of `streams` streams have in common: prompts, state, and windows.

    A softmax block's window (B, W, C) is in this order: the first chunk, the recent ones that there are, this one.
    So what is valid lies together, and attention needs no mask. All state but that of windows is updated in place.
    """

    def __init__(self, layout: Layout, streams: int, device: str) -> None:
        self.streams, self.device = streams, device
        held = [*layout.packs["prompt"].specs, *layout.packs["state"].specs]
        self.tensors = {spec.name: self.zeros(spec.dtype, *spec.shape[1:]) for spec in held}
        rows = layout.sink + layout.window * layout.chunk
        self.windows = {spec.name: self.zeros(spec.dtype, rows, layout.hidden) for spec in layout.packs["sink"].specs}
        self._lying: dict[tuple[str, int], weakref.ref[Tensor]] = {}

    def zeros(self, dtype: str, *shape: int) -> Tensor:
        """A tensor (streams, *shape)."""
        return torch.zeros(self.streams, *shape, dtype=getattr(torch, dtype), device=self.device)

    def lies(self, name: str, index: int, tensor: Tensor) -> bool:
        """Whether this tensor, which nobody changes, was the last to be put there."""
        before = self._lying.get((name, index))
        return before is not None and before() is tensor

    def put(self, name: str, index: int, tensor: Tensor) -> None:
        """Remember what lies there."""
        self._lying[name, index] = weakref.ref(tensor)

    def forget(self) -> None:
        """Something else may lie there by now."""
        self._lying.clear()


class Buffers:
    """One kind of chunk in the room that both kinds share.

    A graph moves what streams bring into the room, and what they take away out of it. It finds their tensors in a table
    of addresses, which changes from call to call.
    """

    def __init__(
        self, layout: Layout, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], steady: bool, room: Room
    ) -> None:
        self._layout, self._steady, self._room = layout, steady, room
        own = [spec for spec in (*inputs, *outputs) if spec.name in ("noise", "source", "latent")]
        self._tensors = {spec.name: room.zeros(spec.dtype, *spec.shape[1:]) for spec in own} | room.tensors
        names = [spec.name for spec in (*inputs, *outputs) if spec.name not in POSITION]
        slots = [(name, index) for index in range(room.streams) for name in names]
        # Slot 0 is for places that never change; behind the streams' tensors are the frames that they start at.
        self._slots = {slot: number for number, slot in enumerate(slots, 1)}
        self._first_start = 1 + len(slots)
        self._numbers = Numbers(self._first_start + room.streams, room.device)
        self._tensors["frame_start"] = self._numbers.table[self._first_start :]
        self._moves: dict[tuple[bool, int, int], tuple[Tensor, bool]] = {}

    def tensor(self, name: str, count: int) -> Tensor:
        """What the first `count` streams have as their input `name`."""
        return self._tensors[name][:count]

    def pasts(self, count: int, recent: int) -> list[Past]:
        """What the blocks read, where every one of `count` streams sees `recent` recent chunks."""
        return [self._past(f"block{block:02d}", count, recent) for block in range(len(self._layout.gdn))]

    def _past(self, block: str, count: int, recent: int) -> Past:
        names = {f"text_{kind}": f"{block}.text_{kind}" for kind in "kv"}
        if self._steady:
            names |= {"tail": f"{block}.tconv", "state_kv": f"{block}.state_kv", "state_z": f"{block}.state_z"}
        found = {field: self._tensors[name][:count] for field, name in names.items() if name in self._tensors}
        windows = [window[:count] for name, window in self._room.windows.items() if name.startswith(block)]
        return Past(**found, **dict(zip(("keys", "values"), windows, strict=False)), start=self._own(recent).start)

    def _own(self, recent: int) -> slice:
        """Rows of the chunk itself."""
        layout = self._layout
        start = layout.sink + recent * layout.chunk if self._steady else 0
        return slice(start, start + (layout.chunk if self._steady else layout.sink))

    def point(
        self, given: Sequence[Mapping[str, Tensor]], made: Sequence[Mapping[str, Tensor]], starts: Sequence[int]
    ) -> None:
        """Let the graph find what streams are `given` and what is `made` for them, and the frames they start at.

        A prompt or a sink that lies in its place already stays there.
        """
        if not self._steady:
            # The keys of these chunks come to where the sink of another stream lies.
            self._room.forget()
        table = [0] * (self._first_start + self._room.streams)
        for index, (feeds, results) in enumerate(zip(given, made, strict=True)):
            for name, tensor in (*feeds.items(), *results.items()):
                if not self._room.lies(name, index, tensor):
                    table[self._slots[name, index]] = tensor.data_ptr()
        table[self._first_start : self._first_start + len(starts)] = starts
        self._numbers.send(table)

    def keep(self, given: Sequence[Mapping[str, Tensor]]) -> None:
        """Remember what a graph that has run has brought to its place and nothing but another call changes."""
        for index, feeds in enumerate(given):
            for name in feeds.keys() & LASTING:
                self._room.put(name, index, feeds[name])

    def bring(self, count: int, recent: int) -> None:
        """Move what the first `count` streams are given to its places; of recent chunks only those that there are."""
        self._move(count, recent, there=True)

    def take(self, latent: Tensor, state: Mapping[str, Tensor], count: int, recent: int) -> None:
        """Put `state` in the place of what the streams carried, and move it to where they take it away.

        Recent slots lose their oldest chunk and get this one as their last.
        """
        copy([(self._tensors[name][:count], tensor) for name, tensor in {"latent": latent, **state}.items()])
        self._move(count, recent, there=False)

    def _move(self, count: int, recent: int, there: bool) -> None:
        key = there, count, recent
        if key not in self._moves:
            moves = self._given if there else self._made
            rows, aligned = rows_of(row for index in range(count) for row in moves(index, recent))
            self._moves[key] = torch.tensor(rows, device=self._room.device), aligned
        move(self._numbers.table, *self._moves[key])

    def _given(self, index: int, recent: int) -> Iterator[Move]:
        layout, packs = self._layout, self._layout.packs
        for name in ("noise", "source"):
            yield self._into(name, index, 0, self._tensors[name][index])
        for spec, start in packs["prompt"].places():
            yield self._into("prompt", index, start, self._tensors[spec.name][index])
        if not self._steady:
            return
        for spec, start in packs["state"].places():
            yield self._into("state" + IN, index, start, self._tensors[spec.name][index])
        for spec, start in packs["sink"].places():
            yield self._into("sink" + IN, index, start, self._room.windows[spec.name][index, : layout.sink])
        for spec, start in packs["recent"].places():
            rows = self._room.windows[spec.name][index, layout.sink : layout.sink + recent * layout.chunk]
            older = (layout.slots - recent) * layout.chunk * rows.stride(0) * rows.itemsize
            yield self._into("recent" + IN, index, start + older, rows)

    def _made(self, index: int, recent: int) -> Iterator[Move]:
        yield self._from(self._tensors["latent"][index], "latent", index, 0)
        for spec, start in self._layout.packs["state"].places():
            yield self._from(self._tensors[spec.name][index], "state" + OUT, index, start)
        name = "recent" if self._steady else "sink"
        for spec, start in self._layout.packs[name].places():
            own = self._room.windows[spec.name][index, self._own(recent)]
            kept = (self._layout.slots - 1) * own.nbytes if self._steady else 0
            if kept:
                older = self._slots["recent" + IN, index], start + own.nbytes
                yield *older, self._slots["recent" + OUT, index], start, kept
            yield self._from(own, name + OUT, index, start + kept)

    def _into(self, name: str, index: int, offset: int, place: Tensor) -> Move:
        return self._slots[name, index], offset, 0, place.data_ptr(), place.nbytes

    def _from(self, place: Tensor, name: str, index: int, offset: int) -> Move:
        return 0, place.data_ptr(), self._slots[name, index], offset, place.nbytes
