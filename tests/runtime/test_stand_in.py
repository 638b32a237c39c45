"""The stand-in of the transport benchmark is streamed by the real stages: its times would mean nothing otherwise."""

import time
from pathlib import Path

import numpy as np
import pytest

from fakes.stand_in import BACKEND, STAGES, StandIn, corners, write_stand_in
from sana_runtime.engine import ENGINES
from sana_runtime.geometry import StreamGeometry
from sana_runtime.stages import Request
from sana_runtime.triton_backend import load_stage

GEOMETRY = StreamGeometry(64, 32, 128)


@pytest.mark.parametrize("seconds", [0.0, 0.03])
def test_corners_of_every_frame_come_back_inverted_after_the_time_that_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setitem(ENGINES, BACKEND, StandIn)
    told = {stage: dict.fromkeys(variants, seconds) for stage, variants in STAGES.items() if stage != "text_encoder"}
    write_stand_in(tmp_path, GEOMETRY, seconds=told)
    stages = {name: load_stage(name, tmp_path, "1") for name in STAGES}
    for index in range(3):
        shape = (1, GEOMETRY.chunk(index).frames, 64, 32, 3)
        frames = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
        tensors = {"frames": frames, "prompt": np.frombuffer(b"invert", np.uint8)[None]}
        began = time.perf_counter()
        for stage in stages.values():
            tensors |= stage.run(Request(tensors, {"chunk": index}, "7", start=index == 0))  # type: ignore[attr-defined]
        assert time.perf_counter() - began >= 3 * seconds
        np.testing.assert_array_equal(corners(tensors["edited"]), 255 - corners(frames))
