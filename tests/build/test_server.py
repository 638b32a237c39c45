"""The real Triton server over the fake pipeline: order, isolation, refusals and slots of its streams."""

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from fakes.streams import Pipeline, assert_stream_works, close, frames, infer
from fakes.tiny_engines import SIZE, write_fake_repository
from sana_build.server import Ports, TritonServer
from sana_build.supervisor import canary
from sana_runtime.manifest import Manifest
from sana_runtime.triton_backend import Metrics

pytestmark = pytest.mark.server

CHUNKS = 5


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "repository"
    write_fake_repository(path, streams=2, chunks=CHUNKS)
    return path


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(repository, Ports.free(), tmp_path_factory.mktemp("log") / "triton.log") as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.grpc_url) as connection:
        yield connection


def test_stream_comes_back_inverted(client: InferenceServerClient) -> None:
    for index in range(CHUNKS):
        edited = infer(client, 11, index, end=index == CHUNKS - 1, seed=3)
        np.testing.assert_array_equal(edited, 255 - frames(index))


def test_string_ids_work(client: InferenceServerClient) -> None:
    assert_stream_works(client, "camera/1")


def test_answer_is_in_place_for_the_next_prompt(client: InferenceServerClient) -> None:
    np.testing.assert_array_equal(infer(client, 12, 0), 255 - frames(0))
    np.testing.assert_array_equal(infer(client, 12, 1, prompt=b"keep"), frames(1))
    np.testing.assert_array_equal(infer(client, 12, 2, end=True), 255 - frames(2))


def test_slow_new_prompt_is_not_overtaken_by_a_known_one(client: InferenceServerClient) -> None:
    infer(client, 13, 0, prompt=b"keep")
    pipeline = Pipeline(client)
    prompts = {1: b"slow", 2: b"keep", 3: b"slow invert", 4: b"keep"}
    for index, prompt in prompts.items():
        pipeline.send(13, index, frames(index), prompt, index == CHUNKS - 1)
    edited = pipeline.collect()
    for index, prompt in prompts.items():
        expected = frames(index) if prompt == b"keep" else 255 - frames(index)
        np.testing.assert_array_equal(edited[f"13/{index}"], expected)


def test_interleaved_streams_are_isolated(client: InferenceServerClient) -> None:
    pipeline = Pipeline(client)
    prompts = {21: b"invert", 22: b"keep"}
    for index in range(CHUNKS):
        for stream, prompt in prompts.items():
            pipeline.send(stream, index, frames(index, stream), prompt, index == CHUNKS - 1)
    edited = pipeline.collect()
    for index in range(CHUNKS):
        np.testing.assert_array_equal(edited[f"21/{index}"], 255 - frames(index, 21))
        np.testing.assert_array_equal(edited[f"22/{index}"], frames(index, 22))


def test_gap_is_refused_and_start_repairs_the_stream(client: InferenceServerClient) -> None:
    infer(client, 31, 0)
    with pytest.raises(InferenceServerException, match="expected chunk 1 and got chunk 2"):
        infer(client, 31, 2)
    assert_stream_works(client, 31)


def test_repeated_chunk_is_refused(client: InferenceServerClient) -> None:
    infer(client, 32, 0)
    infer(client, 32, 1)
    with pytest.raises(InferenceServerException, match="expected chunk 2 and got chunk 1"):
        infer(client, 32, 1)
    close(client, 32)


def test_second_start_begins_afresh(client: InferenceServerClient) -> None:
    infer(client, 33, 0)
    infer(client, 33, 1)
    assert_stream_works(client, 33)


def test_unknown_and_ended_streams_are_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        infer(client, 34, 1)
    infer(client, 34, 0, end=True)
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        infer(client, 34, 1, end=True)


def test_stream_without_id_is_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="non-zero or non-empty correlation ID"):
        infer(client, 0, 0)


WRONG = {
    "frame count": ({"pixels": frames(1)}, r"input frames is uint8 \[1, 24, 16, 16, 3\], this chunk takes"),
    "frame size": ({"pixels": np.zeros((1, 33, 32, 16, 3), np.uint8)}, "unexpected shape"),
    "dtype": ({"pixels": frames(0).astype(np.float32)}, "data-type"),
    "prompt": ({"prompt": b"\xff\xfe"}, "not valid UTF-8"),
    "blank prompt": ({"prompt": b" "}, "the prompt is empty"),
    "chunk type": ({"chunk": "0"}, "integer request parameter `chunk`"),
    "seed": ({"seed": -4}, "parameter `seed` is -4"),
    "close": ({"close": True}, "on a request with START and END"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_request_is_refused_in_a_sentence(client: InferenceServerClient, what: str) -> None:
    arguments, words = WRONG[what]
    with pytest.raises(InferenceServerException, match=words):
        infer(client, 35, 0, **arguments)
    close(client, 35)
    assert_stream_works(client, 36)


def test_empty_prompt_tensor_does_no_harm(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException):
        infer(client, 37, 0, prompt=b"")
    close(client, 37)
    assert_stream_works(client, 38)


def test_stream_beyond_the_position_table_is_refused(client: InferenceServerClient) -> None:
    for index in range(CHUNKS):
        infer(client, 39, index)
    with pytest.raises(InferenceServerException, match="beyond the longest stream this model can hold, 5 chunks"):
        infer(client, 39, CHUNKS)
    close(client, 39)


def test_close_frees_slots_at_once(client: InferenceServerClient) -> None:
    for round_ in range(3):
        for slot in range(2):
            infer(client, 100 + 2 * round_ + slot, 0, timeout=5_000_000)
        for slot in range(2):
            answer = close(client, 100 + 2 * round_ + slot)
            assert (answer.shape, answer.max()) == ((1, 1, SIZE, SIZE, 3), 0)


def test_surplus_stream_is_refused_after_its_timeout(client: InferenceServerClient) -> None:
    infer(client, 41, 0)
    infer(client, 42, 0)
    with pytest.raises(InferenceServerException, match="timeout of the corresponding sequence has been expired"):
        infer(client, 43, 0, timeout=300_000)
    for stream in (41, 42):
        np.testing.assert_array_equal(infer(client, stream, 1, end=True), 255 - frames(1))
    assert_stream_works(client, 44)


def metrics(server: TritonServer) -> set[str]:
    """The lines that the server shows once its stages have published what they had collected."""
    time.sleep(2 * Metrics.PERIOD)
    return set(urllib.request.urlopen(server.metrics_url, timeout=10).read().decode().splitlines())


def test_metrics_count_live_streams_and_chunks_of_each_stage(
    server: TritonServer, client: InferenceServerClient
) -> None:
    before = metrics(server)
    infer(client, 51, 0)
    infer(client, 51, 1)
    found = metrics(server)
    for stage in ("vae_encoder", "denoiser", "vae_decoder"):
        assert f'sana_streams_live{{stage="{stage}"}} 1' in found
        assert figure(found, "chunk_seconds_count", stage) == figure(before, "chunk_seconds_count", stage) + 2
        assert figure(found, "engine_seconds_count", stage) == figure(found, "chunk_seconds_count", stage)
    close(client, 51)


def test_metrics_tell_how_much_of_a_chunk_engines_are_at_work(
    server: TritonServer, client: InferenceServerClient
) -> None:
    before = metrics(server)
    infer(client, 52, 0)
    infer(client, 52, 1, end=True)
    found = metrics(server)
    for stage in ("vae_encoder", "denoiser", "vae_decoder"):
        whole, engines = (
            figure(found, name, stage) - figure(before, name, stage)
            for name in ("chunk_seconds_sum", "engine_seconds_sum")
        )
        assert 0 < engines < whole


def figure(lines: set[str], name: str, stage: str) -> float:
    start = f'sana_{name}{{stage="{stage}"}} '
    return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def test_canary_leaves_nothing_behind(server: TritonServer, repository: Path) -> None:
    canary(server.grpc_url, Manifest.read(repository))
    assert 'sana_streams_live{stage="denoiser"} 0' in metrics(server)
