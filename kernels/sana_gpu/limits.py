"""What a person can do about a GPU that is too small, said where its memory ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sana_runtime.errors import EngineError


@contextmanager
def memory_levers(work: str) -> Iterator[None]:
    """Raises EngineError in place of torch's error if `work` does not fit into the memory of the GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"the GPU has no memory left for {work}: build for fewer streams (--streams), which also makes batches "
            f"smaller, or choose a policy with a lower precision (--policy); torch says: {error}"
        ) from error
