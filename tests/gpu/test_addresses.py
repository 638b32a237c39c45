"""Numbers that the host sends to a device: work in its stream sees those that were sent before it, not later ones."""

import pytest
import torch

from sana_gpu.addresses import Numbers

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_every_table_arrives_in_its_turn(device: str) -> None:
    numbers, seen = Numbers(3, device), []
    for count in range(3 * Numbers.PLACES):
        if device == "cuda":
            # The host is ahead of the device by more tables than there are places for.
            torch.cuda._sleep(10_000_000)
        numbers.send([count, -count, 2**40 + count])
        seen.append(numbers.table.clone())
    assert [table.tolist() for table in seen] == [[i, -i, 2**40 + i] for i in range(len(seen))]
