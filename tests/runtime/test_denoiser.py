"""The denoiser stage: its steps, its cache pass, its prompt, and what it carries from chunk to chunk."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from fakes.engines import LATENT, MANIFEST, TOKENS, WIDTH, FakeEngine, request
from sana_runtime.denoiser import DenoiserStage
from sana_runtime.errors import EngineError, RequestError, SequenceError
from sana_runtime.schedule import chunk_noise, streaming_schedule

SLOTS = 2
PROMPT = {"text_k": (1, 1), "text_bias": (1, 1)}


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


def test_text_of_no_tokens_is_that_of_the_chunk_before() -> None:
    told, silent = denoiser_stage(), denoiser_stage()
    for index in range(3):
        asked = request(
            index,
            source=np.zeros(LATENT["first" if index == 0 else "steady"], np.float32),
            text=np.full((1, 0 if index else TOKENS, WIDTH), 2.0, np.float32),
            text_mask=np.ones((1, TOKENS), np.float32),
        )
        np.testing.assert_array_equal(silent.run(asked)["latent"], denoise(told, index, 2.0))
    assert len(silent.engines["prompt"].calls) == 1


def test_a_stream_cannot_begin_without_text() -> None:
    tensors = {"source": np.zeros(LATENT["first"], np.float32), "text_mask": np.ones((1, TOKENS), np.float32)}
    with pytest.raises(RequestError, match="input text is"):
        denoiser_stage().run(request(0, text=np.zeros((1, 0, WIDTH), np.float32), **tensors))
