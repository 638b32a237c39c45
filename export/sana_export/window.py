"""The caches of a stream's past chunks, of which the softmax blocks see a sink and a recent window (spec 4.4)."""

from collections.abc import Sequence

import torch

from sana_export.caches import Cache, GDNCache, KVCache


def window_chunks(chunk: int, window: int, sink: bool) -> list[int]:
    """Earlier chunks that `chunk` sees, in order; the sink, chunk 0, counts inside `window`; negative means all."""
    if window < 0:
        return list(range(chunk))
    first = chunk - window + 1
    if sink and first > 0:
        return [0, *range(first, chunk)]
    return list(range(max(chunk - window, 0), chunk))


class WindowCache:
    """What a stream carries between chunks: the newest caches, and those of the chunks that are still in the window."""

    def __init__(self, window: int, sink: bool) -> None:
        self.window, self.sink = window, sink
        self.chunk = 0
        self._newest: list[Cache] = []
        self._kept: dict[int, list[Cache]] = {}

    @property
    def chunks(self) -> list[int]:
        """The chunks whose keys the next chunk sees."""
        return list(self._kept)

    def past(self) -> list[Cache] | None:
        """What every block reads for the next chunk, None before the first."""
        if not self._newest:
            return None
        return [self._joined(block, newest) for block, newest in enumerate(self._newest)]

    def append(self, caches: Sequence[Cache]) -> None:
        """Take what a finished chunk wrote, and drop the chunks that no later one will see."""
        self._newest = list(caches)
        self._kept[self.chunk] = self._newest
        self.chunk += 1
        self._kept = {index: self._kept[index] for index in window_chunks(self.chunk, self.window, self.sink)}

    def _joined(self, block: int, newest: Cache) -> Cache:
        if isinstance(newest, GDNCache):
            return newest
        kept = [cache for caches in self._kept.values() if isinstance(cache := caches[block], KVCache)]
        k, v = torch.cat([cache.k for cache in kept], dim=2), torch.cat([cache.v for cache in kept], dim=2)
        # The release takes the FFN tail from the window too, which is not the newest chunk where only the sink is left.
        return KVCache(k, v, kept[-1].tconv)
