import weakref

import pytest
import torch

from sana_export.caches import Cache, GDNCache, KVCache
from sana_export.window import WindowCache, window_chunks

TABLE = [
    # window, sink, the chunks that chunks 0 to 5 see
    (1, True, [[], [0], [0], [0], [0], [0]]),
    (1, False, [[], [0], [1], [2], [3], [4]]),
    (2, True, [[], [0], [0, 1], [0, 2], [0, 3], [0, 4]]),
    (2, False, [[], [0], [0, 1], [1, 2], [2, 3], [3, 4]]),
    (3, True, [[], [0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]),
    (3, False, [[], [0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]),
    (-1, True, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    (-1, False, [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]]),
]


def written(chunk: int) -> list[Cache]:
    """What a chunk writes, every number of it the chunk's index; chunk 0 has more tokens."""
    tokens = 5 if chunk == 0 else 3
    mark = float(chunk)
    gdn = GDNCache(torch.full((1, 1, 2, 2), mark), torch.full((1, 1, 2), mark), torch.full((1, 1, 2), mark))
    keys = torch.full((1, 1, tokens, 2), mark)
    return [gdn, KVCache(keys, keys + 0.5, torch.full((1, 1, 2), mark))]


@pytest.mark.parametrize(("window", "sink", "seen"), TABLE)
def test_chunks_in_the_window(window: int, sink: bool, seen: list[list[int]]) -> None:
    assert [window_chunks(chunk, window, sink) for chunk in range(6)] == seen


@pytest.mark.parametrize(("window", "sink", "seen"), TABLE)
def test_past_holds_the_window_and_the_newest_state(window: int, sink: bool, seen: list[list[int]]) -> None:
    cache = WindowCache(window, sink)
    assert cache.past() is None
    for chunk in range(5):
        cache.append(written(chunk))
        expected = seen[chunk + 1]
        assert cache.chunks == expected
        gdn, softmax = cache.past()
        assert gdn.state_kv.unique() == gdn.state_z.unique() == gdn.tconv.unique() == chunk
        assert softmax.k[0, 0, :, 0].tolist() == [i for i in expected for _ in range(5 if i == 0 else 3)]
        assert torch.equal(softmax.v, softmax.k + 0.5)
        assert softmax.tconv.unique() == expected[-1]


def test_chunks_out_of_the_window_are_freed() -> None:
    cache = WindowCache(2, sink=True)
    references = []
    for chunk in range(5):
        caches = written(chunk)
        references.append(weakref.ref(caches[1].k))
        cache.append(caches)
        del caches
    assert [reference() is not None for reference in references] == [True, False, False, False, True]
