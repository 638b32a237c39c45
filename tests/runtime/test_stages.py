"""The stages over engines with behaviour: their state is a running sum, so order and isolation show in the numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fakes.engines import FRAMES, GEOMETRY, LATENT, MANIFEST, TOKENS, WIDTH, FakeEngine, request
from sana_runtime.errors import EngineError, RequestError, SequenceError
from sana_runtime.stages import Request, Stage, TextEncoderStage, VAEDecoderStage, VAEEncoderStage


def vae_engines(name: str, dtype: str, shapes: dict, output: str, out_dtype: str, out_shapes: dict) -> dict:
    """An encoder or decoder whose output is everywhere the sum of the stream's chunk means so far."""

    def engine(variant: str) -> FakeEngine:
        def function(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            total = feeds.get("total.in", np.zeros(1, np.float32)) + feeds[name].mean(dtype=np.float32)
            return {output: np.full(out_shapes[variant], total[0], out_dtype), "total.out": total}

        carried = {"total__in": ("float32", (1,))} if variant == "steady" else {}
        return FakeEngine(function, **{name: (dtype, shapes[variant])}, **carried)

    return {variant: engine(variant) for variant in ("first", "steady")}


def encoder_stage(**options: Any) -> VAEEncoderStage:
    return VAEEncoderStage(vae_engines("frames", "uint8", FRAMES, "source", "float32", LATENT), MANIFEST, **options)


def frames(index: int, value: int = 1) -> np.ndarray:
    return np.full(FRAMES["first" if index == 0 else "steady"], value, np.uint8)


def encode(stage: Stage, index: int, value: int, correlation: str = "7") -> float:
    return float(stage.run(request(index, correlation, frames=frames(index, value)))["source"].mean())


def test_encoder_carries_its_state_over_the_chunks() -> None:
    stage = encoder_stage()
    assert [encode(stage, index, value) for index, value in enumerate((1, 2, 4))] == [1, 3, 7]


def test_interleaved_streams_are_isolated() -> None:
    stage = encoder_stage()
    mixed = [(encode(stage, index, 1, "a"), encode(stage, index, 10, "b")) for index in range(3)]
    assert mixed == [(1, 10), (2, 20), (3, 30)]


def test_decoder_answers_frames() -> None:
    stage = VAEDecoderStage(vae_engines("latent", "float32", LATENT, "edited", "uint8", FRAMES), MANIFEST)
    first = stage.run(request(0, latent=np.full(LATENT["first"], 3, np.float32)))["edited"]
    second = stage.run(request(1, latent=np.full(LATENT["steady"], 4, np.float32)))["edited"]
    assert (first.shape, second.shape) == (FRAMES["first"], FRAMES["steady"])
    assert (first.min(), second.max()) == (3, 7)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.zeros((1, 24, 4, 8, 3), np.uint8), r"uint8 \[1, 24, 4, 8, 3\], this chunk takes uint8 \[1, 33, 4, 8, 3\]"),
        (np.zeros((1, 33, 8, 8, 3), np.uint8), r"\[1, 33, 8, 8, 3\], this chunk takes"),
        (np.zeros((1, 33, 4, 8, 3), np.float32), "is float32"),
    ],
)
def test_wrong_frames_are_refused_and_can_be_sent_again(wrong: np.ndarray, words: str) -> None:
    stage = encoder_stage()
    with pytest.raises(RequestError, match=words):
        stage.run(request(0, frames=wrong))
    assert stage.run(Request({"frames": frames(0)}, {"chunk": 0}, "7"))["source"].mean() == 1


def test_missing_chunk_parameter_and_missing_tensor_are_refused() -> None:
    stage = encoder_stage()
    with pytest.raises(SequenceError, match="integer request parameter `chunk`"):
        stage.run(Request({"frames": frames(0)}, {}, "7", start=True))
    with pytest.raises(RequestError, match="input frames is missing"):
        stage.run(request(0))


def test_stream_ends_with_the_position_table() -> None:
    stage = encoder_stage()
    for index in range(GEOMETRY.max_chunks):
        encode(stage, index, 1)
    with pytest.raises(SequenceError, match="beyond the longest stream"):
        encode(stage, GEOMETRY.max_chunks, 1)


def test_failed_engine_breaks_the_stream_until_start() -> None:
    stage = encoder_stage()
    encode(stage, 0, 1)
    encode(stage, 0, 1, "other")
    stage.engines["steady"].failing = True
    with pytest.raises(EngineError):
        encode(stage, 1, 1)
    stage.engines["steady"].failing = False
    with pytest.raises(SequenceError, match=r"broke at chunk 1 \(out of memory\)"):
        encode(stage, 1, 1)
    assert encode(stage, 1, 1, "other") == 2
    assert [encode(stage, index, 5) for index in range(2)] == [5, 10]


def close(correlation: str = "7") -> Request:
    return Request({}, {"close": True}, correlation, start=True, end=True)


def test_close_frees_the_stream_without_an_engine() -> None:
    stage = encoder_stage()
    encode(stage, 0, 1)
    assert stage.run(close())["source"].shape == (1, 2, 1, 1, 2)
    assert stage.sessions.live == 0
    assert len(stage.engines["first"].calls) == 1


def test_close_of_an_unknown_stream_is_answered() -> None:
    stage = VAEDecoderStage(vae_engines("latent", "float32", LATENT, "edited", "uint8", FRAMES), MANIFEST)
    edited = stage.run(close())["edited"]
    assert (edited.shape, edited.max()) == ((1, 1, 4, 8, 3), 0)


def test_close_needs_both_flags_and_a_boolean() -> None:
    with pytest.raises(RequestError, match="on a request with START and END"):
        encoder_stage().run(request(0, parameters={"close": True}, frames=frames(0)))
    with pytest.raises(RequestError, match="`close` is 'yes'"):
        encoder_stage().run(Request({}, {"close": "yes"}, "7", start=True, end=True))


def test_warm_up_call_keeps_no_state() -> None:
    stage = encoder_stage()
    assert stage.run(Request({"frames": frames(0)}, {}, "0"))["source"].any() == np.False_
    assert stage.sessions.live == 0


def text_engine() -> FakeEngine:
    def function(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        text = np.full((1, TOKENS, WIDTH), feeds["input_ids"].sum(), np.float32)
        return {"text": text, "text_mask": np.ones((1, TOKENS), np.float32)}

    return FakeEngine(function, input_ids=("int64", (1, 2)), attention_mask=("int64", (1, 2)))


def text_stage(engine: FakeEngine) -> TextEncoderStage:
    def tokenize(prompt: bytes) -> tuple[np.ndarray, np.ndarray]:
        return np.full((1, 2), len(prompt), np.int64), np.ones((1, 2), np.int64)

    return TextEncoderStage({"prompt": engine}, MANIFEST, tokenize)


def prompt(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)[None]


def test_text_encoder_runs_its_engine_once_per_prompt() -> None:
    engine = text_engine()
    stage = text_stage(engine)
    answers = [stage.run(request(0, prompt=prompt(text)))["text"][0, 0, 0] for text in (b"ab", b"abc", b"ab")]
    assert answers == [4, 6, 4]
    assert len(engine.calls) == 2


def test_text_encoder_answers_a_close_without_its_engine() -> None:
    engine = text_engine()
    answer = text_stage(engine).run(close())
    assert {name: array.shape for name, array in answer.items()} == {"text": (1, 3, 2), "text_mask": (1, 3)}
    assert not engine.calls


def tokens_told(stage: TextEncoderStage, index: int, text: bytes, correlation: str = "7", **options: Any) -> int:
    """How many tokens of text the stage answers for a chunk; its mask is always there."""
    answer = stage.run(request(index, correlation, prompt=prompt(text), **options))
    assert answer["text_mask"].shape == (1, TOKENS)
    return answer["text"].shape[1]


def test_text_is_told_once_per_prompt_of_a_stream() -> None:
    stage = text_stage(text_engine())
    told = [tokens_told(stage, index, text) for index, text in enumerate((b"ab", b"ab", b"abc", b"abc", b"ab"))]
    assert told == [TOKENS, 0, TOKENS, 0, TOKENS]


def test_text_is_told_to_every_stream_and_again_at_its_start() -> None:
    stage = text_stage(text_engine())
    assert [tokens_told(stage, 0, b"ab", name) for name in "xyx"] == [TOKENS] * 3
    assert [tokens_told(stage, 1, b"ab", name) for name in "yx"] == [0, 0]
    assert tokens_told(stage, 2, b"ab", "x", end=True) == 0
    assert tokens_told(stage, 3, b"ab", "x") == TOKENS


def test_text_of_a_chunk_that_is_sent_again_is_told_again() -> None:
    stage = text_stage(text_engine())
    assert [tokens_told(stage, index, b"ab") for index in (0, 1, 1, 2, 4)] == [TOKENS, 0, TOKENS, 0, TOKENS]


def test_text_of_more_streams_than_there_are_slots_is_told() -> None:
    stage = text_stage(text_engine())
    for index in range(2):
        assert [tokens_told(stage, index, b"ab", name) for name in "xyz"] == [TOKENS] * 3
