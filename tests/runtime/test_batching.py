"""Streams whose engine calls run together: the answers of each alone, whatever the others do."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from test_denoiser import LATENT, TOKENS, WIDTH, denoiser_stage

from fakes.engines import FakeEngine, request
from sana_runtime.batching import Call, Steps, together
from sana_runtime.errors import EngineError, RequestError
from sana_runtime.stages import Request


class Batched(FakeEngine):
    """Notes how many streams it was asked for at once, and fails when one of them says so."""

    def __init__(self) -> None:
        super().__init__(lambda feeds: {"y": feeds["x"] + 1}, x=("float32", (1,)))
        self.sizes: list[int] = []

    def run_batch(self, feeds: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        self.sizes.append(len(feeds))
        return super().run_batch(feeds)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if feeds["x"][0] < 0:
            raise EngineError("negative")
        return super().run(feeds)


def climb(value: float, times: int) -> Steps[float]:
    for _ in range(times):
        outputs = yield Call("up", {"x": np.array([value], np.float32)})
        value = float(outputs["y"][0])
    return value


def test_streams_at_the_same_engine_are_one_batch_until_they_end() -> None:
    engine = Batched()
    assert together({"up": engine}, [climb(0, 1), climb(10, 3), climb(20, 2)]) == [1, 13, 22]
    assert engine.sizes == [3, 2, 1]


def test_a_stream_that_fails_the_batch_fails_alone() -> None:
    first, second, third = together({"up": Batched()}, [climb(0, 2), climb(-5, 2), climb(7, 2)])
    assert (first, third) == (2, 9)
    assert isinstance(second, EngineError)


def test_a_stream_without_calls_and_one_that_raises_at_once() -> None:
    def refuse() -> Iterator[Call]:
        raise RequestError("no")
        yield

    nothing, refused = together({}, [climb(3, 0), refuse()])  # type: ignore[list-item]
    assert nothing == 3
    assert isinstance(refused, RequestError)


def chunk(stream: str, index: int, text: float) -> Request:
    tensors = {
        "source": np.zeros(LATENT["first" if index == 0 else "steady"], np.float32),
        "text": np.full((1, TOKENS, WIDTH), text, np.float32),
        "text_mask": np.ones((1, TOKENS), np.float32),
    }
    return request(index, stream, parameters={"seed": ord(stream)}, **tensors)


def test_streams_of_different_age_denoised_together_are_as_alone() -> None:
    plan = {"a": [0.0, 0.0, 2.0], "b": [1.0, 1.0, 1.0]}
    alone: dict[str, list[np.ndarray]] = {}
    for stream, texts in plan.items():
        stage = denoiser_stage()
        alone[stream] = [stage.run(chunk(stream, i, text))["latent"] for i, text in enumerate(texts)]
    stage = denoiser_stage()
    stage.run(chunk("a", 0, 0.0))
    for index in range(2):
        older, younger = stage.run_batch([chunk("a", index + 1, plan["a"][index + 1]), chunk("b", index, 1.0)])
        np.testing.assert_array_equal(older["latent"], alone["a"][index + 1])  # type: ignore[index]
        np.testing.assert_array_equal(younger["latent"], alone["b"][index])  # type: ignore[index]


def test_a_request_at_fault_leaves_the_others_of_its_batch_alone() -> None:
    stage = denoiser_stage()
    sound, faulty = stage.run_batch([chunk("a", 0, 0.0), chunk("b", 1, 0.0)])
    assert isinstance(faulty, RequestError)
    assert isinstance(sound, dict)
    with pytest.raises(RequestError):
        stage.run(chunk("b", 1, 0.0))
