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


class Room:
    """What first and later chunks of `streams` streams have in common: prompts, state, and windows.

    A softmax block's window (B, W, C) is in this order: the first chunk, the recent ones that there are, this one.
    So what is valid lies together, and attention needs no mask. All state but that of windows is updated in place.
    """

    def __init__(self, layout: Layout, streams: int, device: str) -> None:
        self.streams, self.device = streams, device
        self.tensors = {spec.name: self.zeros(spec.dtype, *spec.shape[1:]) for spec in layout.prompt()}
        self.tensors |= {spec.name + IN: self.zeros(spec.dtype, *spec.shape[1:]) for spec in layout.state()}
        rows = layout.sink + layout.window * layout.chunk
        blocks = [f"block{block:02d}" for block, gdn in enumerate(layout.gdn) if not gdn]
        self.windows = {
            f"{block}.{kind}": self.zeros(layout.dtype, rows, layout.hidden) for block in blocks for kind in "kv"
        }
        self._lying: dict[tuple[str, int], weakref.ref[Tensor]] = {}

    def zeros(self, dtype: str, *shape: int) -> Tensor:
        """A tensor (streams, *shape)."""
        return torch.zeros(self.streams, *shape, dtype=getattr(torch, dtype), device=self.device)

    def lies(self, place: tuple[str, int], tensor: Tensor) -> bool:
        """Whether this tensor, which nobody changes, was the last to be put there."""
        before = self._lying.get(place)
        return any(part in place[0] for part in LASTING) and before is not None and before() is tensor

    def put(self, places: Mapping[tuple[str, int], Tensor]) -> None:
        """Remember what was put where."""
        self._lying |= {place: weakref.ref(tensor) for place, tensor in places.items()}

    def forget(self) -> None:
        """Something else may lie there by now."""
        self._lying.clear()


class Buffers:
    """One kind of chunk in the room that both kinds share."""

    def __init__(self, layout: Layout, inputs: Sequence[TensorSpec], steady: bool, room: Room) -> None:
        self._layout, self._steady, self._room = layout, steady, room
        own = [spec for spec in inputs if spec.name in ("noise", "source")]
        self._tensors = {spec.name: room.zeros(spec.dtype, *spec.shape[1:]) for spec in own}
        self._tensors["frame_start"] = room.zeros("int64")
        self._tensors |= {spec.name: room.tensors[spec.name] for spec in inputs if spec.name in room.tensors}

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
        windows = [window[:count] for name, window in self._room.windows.items() if name.startswith(block)]
        return Past(**found, **dict(zip(("keys", "values"), windows, strict=False)), start=self._own(recent).start)

    def _own(self, recent: int) -> slice:
        """Rows of the chunk itself."""
        layout = self._layout
        start = layout.sink + recent * layout.chunk if self._steady else 0
        return slice(start, start + (layout.chunk if self._steady else layout.sink))

    def update(self, state: Mapping[str, Tensor], count: int) -> Tensors:
        """Put the `state` that the first `count` streams are left with in the place of what they carried."""
        places = {name: self._room.tensors[name + IN][:count] for name in state}
        copy([(place, state[name]) for name, place in places.items()])
        return places

    def load(self, feeds: Sequence[Mapping[str, Tensor]], recent: int, starts: Sequence[int]) -> None:
        """Put what the streams are fed to its places, and the frames they start at.

        A prompt or a sink that lies there already stays.
        """
        if not self._steady:
            # The keys of these chunks come to where the sink of another stream lies.
            self._room.forget()
        for index, start in enumerate(starts):
            # A kernel that fills, as a copy from the host would wait for the GPU.
            self._tensors["frame_start"][index].fill_(start)
        places = {(name, index): tensor for index, one in enumerate(feeds) for name, tensor in one.items()}
        moving = {place: tensor for place, tensor in places.items() if not self._room.lies(place, tensor)}
        copy([pair for (name, index), tensor in moving.items() for pair in self._places(name, tensor, index, recent)])
        self._room.put(moving)

    def _places(self, name: str, tensor: Tensor, index: int, recent: int) -> list[Pair]:
        """Where a feed goes; of recent chunks only those that there are."""
        if name in self._tensors:
            return [(self._tensors[name][index], tensor[0])]
        block, slot = name.removesuffix(IN).split(".")
        part, kind = slot.split("_")
        rows = self._room.windows[f"{block}.{kind}"][index]
        sink, valid = self._layout.sink, recent * self._layout.chunk
        if part == "sink":
            return [(self._heads(rows[:sink]), tensor[0])]
        return [(self._heads(rows[sink : sink + valid]), tensor[0][:, tensor.shape[2] - valid :])]

    def results(self, index: int, feeds: Mapping[str, Tensor], made: Mapping[str, Tensor], recent: int) -> Tensors:
        """Copies of what one stream has `made` (B, ...), and the keys and values that it has from now on.

        Recent slots lose their oldest chunk and get this one as their last.
        """
        found = {name: tensor[index : index + 1] for name, tensor in made.items()}
        pairs = [(torch.empty_like(tensor), tensor) for tensor in found.values()]
        results = dict(zip(found, (target for target, _ in pairs), strict=True))
        for place, window in self._room.windows.items():
            name = place.replace(".", ".recent_" if self._steady else ".sink_")
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
