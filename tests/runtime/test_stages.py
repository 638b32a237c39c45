"""The stages over engines with behaviour: their state is a running sum, so order and isolation show in the numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from sana_runtime.denoiser import DenoiserStage
from sana_runtime.engine import TensorSpec, check_feeds
from sana_runtime.errors import EngineError, RequestError, SequenceError
from sana_runtime.geometry import StreamGeometry
from sana_runtime.manifest import Manifest
from sana_runtime.schedule import chunk_noise, streaming_schedule
from sana_runtime.stages import Request, Stage, TextEncoderStage, VAEDecoderStage, VAEEncoderStage

GEOMETRY = StreamGeometry(height=4, width=8, latent_channels=2, spatial_ratio=4, max_latents=14)
TOKENS, WIDTH, SLOTS = 3, 2, 2
MANIFEST = Manifest(
    model="fake",
    gpu="cpu",
    policy="fp32",
    checkpoint="none",
    geometry=GEOMETRY,
    steps=2,
    streams=2,
    idle_seconds=60.0,
    threads=1,
    engines={},
    versions={},
    config={"text": {"tokens": TOKENS, "width": WIDTH}},
)
FRAMES = {name: (1, frames, 4, 8, 3) for name, frames in (("first", 33), ("steady", 24))}
LATENT = {name: (1, 2, latents, 1, 2) for name, latents in (("first", 5), ("steady", 3))}
PROMPT = {"text_k": (1, 1), "text_bias": (1, 1)}


class FakeEngine:
    """Checks its feeds like a real engine, then computes `function`; counts calls and fails while `failing`."""

    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, function: Callable[..., dict[str, np.ndarray]], **inputs: tuple[str, tuple[int, ...]]) -> None:
        self.inputs = tuple(TensorSpec(name.replace("__", "."), *spec) for name, spec in inputs.items())
        self.function, self.failing = function, False
        self.calls: list[dict[str, np.ndarray]] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        self.calls.append(dict(feeds))
        if self.failing:
            raise EngineError("out of memory")
        return self.function(feeds)


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


def request(
    index: int, correlation: str = "7", *, end: bool = False, parameters: Any = None, **tensors: Any
) -> Request:
    return Request(tensors, {"chunk": index, **(parameters or {})}, correlation, start=index == 0, end=end)


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


def denoiser_stage() -> DenoiserStage:
    """Velocity = timestep / 1000 + state + text; the cache pass adds the latent's first value to the state."""

    def prompt_function(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"text_k": feeds["text"].max(keepdims=True)[0], "text_bias": feeds["text_mask"].min(keepdims=True)}

    def velocity(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        state = feeds.get("block00.state_kv.in", np.zeros(1, np.float32))
        value = feeds["timestep"] / 1000 + state + feeds["text_k"]
        return np.broadcast_to(value[0, 0], feeds["latent"].shape).astype(np.float32)

    def first(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen = feeds["latent"].reshape(-1)[:1]
        return {"velocity": velocity(feeds), "block00.state_kv.out": seen, "block01.sink_k.out": seen}

    def steady(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen = feeds["latent"].reshape(-1)[:1]
        kept = {"block00.state_kv.out": feeds["block00.state_kv.in"] + seen, "block01.recent_k.out": seen}
        return {"velocity": velocity(feeds), **kept}

    def inputs(variant: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        latent = dict.fromkeys(("latent", "source"), ("float32", LATENT[variant]))
        return {**latent, "timestep": ("float32", (1,)), **{name: ("float32", shape) for name, shape in PROMPT.items()}}

    states = ("block00__state_kv__in", "block01__sink_k__in", "block01__recent_k__in")
    position = {"frame_start": ("int64", (1,)), "recent_valid": ("float32", (1, SLOTS))}
    text = {"text": ("float32", (1, TOKENS, WIDTH)), "text_mask": ("float32", (1, TOKENS))}
    carried = dict.fromkeys(states, ("float32", (1,)))
    engines = {
        "prompt": FakeEngine(prompt_function, **text),
        "first": FakeEngine(first, **inputs("first")),
        "steady": FakeEngine(steady, **inputs("steady"), **position, **carried),
    }
    return DenoiserStage(engines, MANIFEST)


def denoise(stage: DenoiserStage, index: int, text: float = 0.0, **options: Any) -> np.ndarray:
    variant = "first" if index == 0 else "steady"
    tensors = {
        "source": np.zeros(LATENT[variant], np.float32),
        "text": np.full((1, TOKENS, WIDTH), text, np.float32),
        "text_mask": np.ones((1, TOKENS), np.float32),
    }
    return stage.run(request(index, **options, **tensors))["latent"]


def test_latent_follows_the_euler_steps_from_the_streams_own_noise() -> None:
    schedule = streaming_schedule(MANIFEST.steps)
    expected = chunk_noise(5, 0, LATENT["first"])
    for index, timestep in enumerate(schedule.timesteps):
        step = np.float32(schedule.sigmas[index + 1] - schedule.sigmas[index])
        expected = expected + step * np.float32(timestep / 1000 + 2.0)
    np.testing.assert_allclose(
        denoise(denoiser_stage(), 0, 2.0, parameters={"seed": 5}), expected, rtol=1e-6, atol=1e-6
    )


def test_steps_read_the_same_state_and_the_cache_pass_writes_it() -> None:
    stage = denoiser_stage()
    latents = [denoise(stage, index) for index in range(3)]
    calls = stage.engines["steady"].calls
    assert [float(call["timestep"][0]) for call in calls] == [1000, 743, 0] * 2
    sums = np.cumsum([latent.reshape(-1)[0] for latent in latents])
    assert [float(call["block00.state_kv.in"][0]) for call in calls] == [sums[0]] * 3 + [sums[1]] * 3
    assert {float(call["block01.sink_k.in"][0]) for call in calls} == {float(latents[0].reshape(-1)[0])}


def test_recent_slots_start_empty_and_fill_from_the_end() -> None:
    stage = denoiser_stage()
    latents = [denoise(stage, index) for index in range(4)]
    passes = stage.engines["steady"].calls[2::3]
    assert [call["recent_valid"].tolist() for call in passes] == [[[0, 0]], [[0, 1]], [[1, 1]]]
    assert [int(call["frame_start"][0]) for call in passes] == [5, 8, 11]
    assert passes[0]["block01.recent_k.in"] == 0
    assert passes[1]["block01.recent_k.in"] == latents[1].reshape(-1)[0]


def test_last_chunk_has_no_cache_pass() -> None:
    stage = denoiser_stage()
    denoise(stage, 0, end=True)
    assert [float(call["timestep"][0]) for call in stage.engines["first"].calls] == [1000, 743]
    assert stage.sessions.live == 0


def test_prompt_engine_runs_when_the_text_changes() -> None:
    stage = denoiser_stage()
    for index, text in enumerate((1.0, 1.0, 2.0, 2.0)):
        denoise(stage, index, text)
    assert [float(call["text"].max()) for call in stage.engines["prompt"].calls] == [1, 2]
    assert [float(call["text_k"][0, 0]) for call in stage.engines["steady"].calls[::3]] == [1, 2, 2]


def test_prompt_is_kept_as_a_copy_of_the_requests_memory() -> None:
    stage = denoiser_stage()
    text, mask = np.ones((1, TOKENS, WIDTH), np.float32), np.ones((1, TOKENS), np.float32)
    stage.run(request(0, source=np.zeros(LATENT["first"], np.float32), text=text, text_mask=mask))
    text[:] = 2.0
    stage.run(request(1, source=np.zeros(LATENT["steady"], np.float32), text=text, text_mask=mask))
    assert len(stage.engines["prompt"].calls) == 2


def test_denoiser_streams_are_isolated() -> None:
    alone = [denoise(stage, index, parameters={"seed": 1}) for stage in [denoiser_stage()] for index in range(3)]
    stage = denoiser_stage()
    mixed = []
    for index in range(3):
        mixed.append(denoise(stage, index, correlation="a", parameters={"seed": 1}))
        denoise(stage, index, 9.0, correlation="b", parameters={"seed": 2})
    np.testing.assert_array_equal(np.concatenate(mixed, 2), np.concatenate(alone, 2))


@pytest.mark.parametrize("seed", [-1, 2**63, "5", 1.0, True, None])
def test_seed_must_be_a_natural_number(seed: object) -> None:
    with pytest.raises(RequestError, match="parameter `seed`"):
        denoise(denoiser_stage(), 0, parameters={"seed": seed})


def test_seed_is_fixed_when_the_stream_begins() -> None:
    stage = denoiser_stage()
    denoise(stage, 0, parameters={"seed": 3})
    with pytest.raises(RequestError, match="changed from 3 to 4"):
        denoise(stage, 1, parameters={"seed": 4})
    denoise(stage, 1, parameters={"seed": 3})


def test_failure_between_steps_leaves_no_half_written_state() -> None:
    stage = denoiser_stage()
    denoise(stage, 0)
    stage.engines["steady"].failing = True
    with pytest.raises(EngineError):
        denoise(stage, 1)
    stage.engines["steady"].failing = False
    with pytest.raises(SequenceError, match="broke at chunk 1"):
        denoise(stage, 1)
    np.testing.assert_array_equal(denoise(stage, 0), denoise(denoiser_stage(), 0))
