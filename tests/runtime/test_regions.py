"""Frames and latents in a client's shared memory: edited there, mapped as long as the stream, nothing else touched."""

import gc
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_denoiser import denoiser_stage
from test_stages import encoder_stage, vae_engines

from fakes.engines import FRAMES, LATENT, MANIFEST, TOKENS, WIDTH, request
from sana_runtime.errors import RequestError
from sana_runtime.memory import TorchMemory
from sana_runtime.regions import FOLDER, PREFIX
from sana_runtime.stages import Stage, VAEDecoderStage

SIZE = int(np.prod(FRAMES["first"]))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A client's region with room for two first chunks."""
    path = FOLDER / (PREFIX + secrets.token_hex(8))
    path.write_bytes(bytes(2 * SIZE))
    yield path
    path.unlink(missing_ok=True)


def shape(index: int) -> tuple[int, ...]:
    return FRAMES["first" if index == 0 else "steady"]


def decoder_stage() -> VAEDecoderStage:
    return VAEDecoderStage(vae_engines("latent", "float32", LATENT, "edited", "uint8", FRAMES), MANIFEST)


def write(path: Path, offset: int, index: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.full(shape(index), value, np.uint8).tobytes())


def places(tensor: str, path: Path, offset: object = 0) -> dict[str, object]:
    return {f"{tensor}_region": path.name, f"{tensor}_offset": offset}


def encode(
    stage: Stage, index: int, path: Path, offset: object = 0, correlation: str = "7", end: bool = False
) -> float:
    asked = request(index, correlation, end=end, parameters=places("frames", path, offset), frames=empty())
    return float(stage.run(asked)["source"].mean())


def decode(stage: Stage, index: int, value: float, parameters: dict[str, object], correlation: str = "7") -> np.ndarray:
    latent = np.full(LATENT["first" if index == 0 else "steady"], value, np.float32)
    return stage.run(request(index, correlation, parameters=parameters, latent=latent))["edited"]


def empty() -> np.ndarray:
    return np.empty((1, 0, *FRAMES["first"][2:]), np.uint8)


def mapped(path: Path, stage: Any) -> bool:
    """Whether this process maps the region, apart from what the fake engines remember of their calls."""
    for engine in stage.engines.values():
        engine.calls.clear()
    gc.collect()
    return path.name in Path("/proc/self/maps").read_text()


def test_frames_are_read_where_the_client_wrote_them(memory: Path) -> None:
    stage = encoder_stage()
    found = []
    for index, (value, offset) in enumerate(((1, 0), (2, SIZE), (4, 0))):
        write(memory, offset, index, value)
        found.append(encode(stage, index, memory, offset))
    assert found == [1, 3, 7]


def test_edited_frames_are_written_where_the_client_wants_them(memory: Path) -> None:
    stage = decoder_stage()
    memory.write_bytes(b"\xff" * 2 * SIZE)
    assert decode(stage, 0, 3, places("edited", memory)).shape == (1, 0, 4, 8, 3)
    assert decode(stage, 1, 4, places("edited", memory, SIZE)).size == 0
    found = np.fromfile(memory, np.uint8)
    steady = int(np.prod(FRAMES["steady"]))
    assert set(found[:SIZE]) == {3}
    assert set(found[SIZE : SIZE + steady]) == {7}
    assert set(found[SIZE + steady :]) == {255}


def test_a_stream_may_go_on_without_its_region(memory: Path) -> None:
    stage = decoder_stage()
    decode(stage, 0, 3, places("edited", memory))
    answer = decode(stage, 1, 4, {})
    assert (answer.shape, answer.max()) == (FRAMES["steady"], 7)
    assert not mapped(memory, stage)


def test_two_streams_have_regions_of_their_own(memory: Path, tmp_path: Path) -> None:
    other = FOLDER / f"{memory.name}b"
    other.write_bytes(bytes(SIZE))
    try:
        stage = encoder_stage()
        write(memory, 0, 0, 1)
        write(other, 0, 0, 10)
        assert [encode(stage, 0, memory), encode(stage, 0, other, correlation="8")] == [1, 10]
        write(memory, 0, 1, 2)
        write(other, 0, 1, 20)
        assert [encode(stage, 1, other, correlation="8"), encode(stage, 1, memory)] == [30, 3]
    finally:
        other.unlink()


@pytest.mark.parametrize("ending", ["last chunk", "close", "start"])
def test_a_region_is_let_go_with_its_stream(memory: Path, ending: str) -> None:
    stage = encoder_stage()
    encode(stage, 0, memory)
    memory.unlink()
    encode(stage, 1, memory)
    assert mapped(memory, stage)
    if ending == "last chunk":
        encode(stage, 2, memory, end=True)
    elif ending == "close":
        stage.run(request(0, end=True, parameters={"close": True}))
    else:
        stage.run(request(0, frames=np.zeros(FRAMES["first"], np.uint8)))
    assert not mapped(memory, stage)


def elsewhere(path: Path) -> Path:
    """Not a client's region, but the name of one."""
    link = FOLDER / f"{path.name}link"
    link.symlink_to(path)
    return link


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../etc/passwd", "is not a region of frames"),
        ("psm_1234", "is not a region of frames"),
        (PREFIX, "is not a region of frames"),
        (PREFIX + "a/b", "is not a region of frames"),
        (PREFIX + "nobody", "cannot be opened here .* send the frames in the request"),
    ],
)
def test_names_that_are_no_region_are_refused(name: str, words: str) -> None:
    stage = encoder_stage()
    with pytest.raises(RequestError, match=words):
        stage.run(request(0, parameters={"frames_region": name, "frames_offset": 0}, frames=empty()))


def test_a_link_and_an_empty_region_are_refused(memory: Path) -> None:
    link = elsewhere(memory)
    try:
        with pytest.raises(RequestError, match="cannot be opened here"):
            encode(encoder_stage(), 0, link)
    finally:
        link.unlink()
    os.truncate(memory, 0)
    with pytest.raises(RequestError, match="is empty"):
        encode(encoder_stage(), 0, memory)


@pytest.mark.parametrize("offset", [-1, SIZE + 1, 2 * SIZE, None, "0", True])
def test_a_place_outside_the_region_is_refused_and_the_stream_goes_on(memory: Path, offset: object) -> None:
    stage = encoder_stage()
    with pytest.raises(RequestError, match="are not inside the shared memory"):
        encode(stage, 0, memory, offset)
    again = request(0, parameters=places("frames", memory, SIZE), frames=empty())
    assert stage.run(again)["source"].mean() == 0


ROOM = 4 * int(np.prod(LATENT["first"]))
"""Bytes of the largest latent."""


class Chain:
    """All stages of a model but the text, each told what the one before answered."""

    def __init__(self) -> None:
        self.stages = [encoder_stage(), denoiser_stage(), decoder_stage()]

    def edit(self, index: int, value: int, correlation: str, parameters: dict[str, object]) -> dict[str, np.ndarray]:
        tensors = {
            "frames": np.full(shape(index), value, np.uint8),
            "text": np.zeros((1, TOKENS, WIDTH), np.float32),
            "text_mask": np.ones((1, TOKENS), np.float32),
        }
        for stage in self.stages:
            tensors |= stage.run(request(index, correlation, parameters=parameters, **tensors))
        return tensors


def test_stages_hand_over_latents_where_the_client_has_room(memory: Path) -> None:
    by_place, by_tensor = Chain(), Chain()
    for index in range(3):
        for number, value in (("7", 1), ("8", 40)):
            slot = places("latent", memory, ROOM * (number == "8"))
            placed = by_place.edit(index, value, number, slot)
            sent = by_tensor.edit(index, value, number, {})
            assert (placed["source"].shape, placed["latent"].shape) == (2 * ((1, 2, 0, 1, 2),))
            np.testing.assert_array_equal(placed["edited"], sent["edited"])
            lies = np.fromfile(memory, np.float32, sent["latent"].size, offset=ROOM * (number == "8"))
            np.testing.assert_array_equal(lies, sent["latent"].reshape(-1))


def test_every_stage_lets_go_of_the_room_for_latents(memory: Path) -> None:
    chain = Chain()
    for index in range(2):
        chain.edit(index, 1, "7", places("latent", memory))
    memory.unlink()
    for stage in chain.stages:
        assert mapped(memory, stage)
        stage.run(request(0, end=True, parameters={"close": True}))
    assert not mapped(memory, chain.stages[0])


def test_latents_begin_at_a_number_of_their_own_size(memory: Path) -> None:
    with pytest.raises(RequestError, match="begin at a multiple of 4, not 2"):
        Chain().edit(0, 1, "7", places("latent", memory, 2))


class Driver:
    """Stands in for the part of CUDA that lets a card read host memory; refuses while `failing`."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.failing = False

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        if self.failing:
            return 2
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    return found


def on_a_card(stage: Stage) -> Stage:
    """The stage as if its engines were on a GPU, for all but the copies there."""
    memory = TorchMemory("cpu")
    memory._stream = object()
    memory.upload, memory.download = (lambda array: array), (lambda array, into=None: array)  # type: ignore[method-assign]
    stage.memory = memory  # type: ignore[attr-defined]
    return stage


def test_a_card_is_told_of_a_region_once_and_when_it_is_let_go(memory: Path, driver: Driver) -> None:
    stage = on_a_card(encoder_stage())
    for index in range(3):
        encode(stage, index, memory)
        assert list(driver.registered.values()) == [2 * SIZE]
    encode(stage, 3, memory, end=True)
    assert not mapped(memory, stage)
    assert not driver.registered


def test_a_card_that_cannot_read_it_is_told_and_the_frames_are_copied(memory: Path, driver: Driver) -> None:
    driver.failing = True
    stage = on_a_card(encoder_stage())
    write(memory, 0, 0, 5)
    with pytest.warns(UserWarning, match="cannot read shared memory by itself"):
        assert encode(stage, 0, memory) == 5
    encode(stage, 1, memory, end=True)
