import pytest
import torch
from torch import Tensor

from sana_export.dit import DiT
from sana_export.sampler import (
    DiTCall,
    DiTStream,
    clip_velocity,
    dpm_solver,
    dpm_timesteps,
    edit_clip,
    guided,
)
from sana_runtime.errors import ConfigError, SequenceError
from sana_runtime.schedule import streaming_schedule
from small_dit import CONFIG, assert_near, latents, make_prompt, small_dit, text_and_mask

SCHEDULE = streaming_schedule(2)
LENGTHS = (5, 3, 3, 3)


def open_stream(dit: DiT) -> DiTStream:
    return DiTStream(dit, SCHEDULE, window=2, sink=True)


def solo(dit: DiT, seed: int) -> list[Tensor]:
    stream, prompt = open_stream(dit), make_prompt(dit, seed)
    return [stream.step(*latents(length, 10 * seed + i), prompt) for i, length in enumerate(LENGTHS)]


def test_interleaved_streams_equal_solo_runs() -> None:
    dit = small_dit()
    streams = {seed: open_stream(dit) for seed in (1, 2)}
    prompts = {seed: make_prompt(dit, seed) for seed in (1, 2)}
    found: dict[int, list[Tensor]] = {1: [], 2: []}
    # The second stream starts late and then runs in step with the first.
    for seed, chunk in ((1, 0), (1, 1), (2, 0), (1, 2), (2, 1), (2, 2), (1, 3), (2, 3)):
        found[seed].append(streams[seed].step(*latents(LENGTHS[chunk], 10 * seed + chunk), prompts[seed]))
    for seed in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(found[seed], solo(dit, seed), strict=True))


def test_a_clip_is_a_stream() -> None:
    dit = small_dit()
    noise, source = latents(11, 3)
    text, mask = text_and_mask(3)
    clip = edit_clip(dit, noise, source, text, mask, SCHEDULE, 2, True)
    stream, prompt = open_stream(dit), dit.prompt(text, mask)
    for start, stop in ((0, 5), (5, 8), (8, 11)):
        chunk = stream.step(noise[:, :, start:stop], source[:, :, start:stop], prompt)
        assert torch.equal(chunk, clip[:, :, start:stop])


def test_later_chunks_do_not_change_earlier_ones() -> None:
    dit = small_dit()
    noise, source = latents(11, 3)
    whole = edit_clip(dit, noise, source, *text_and_mask(3), SCHEDULE, 2, True)
    prefix = edit_clip(dit, noise[:, :, :8], source[:, :, :8], *text_and_mask(3), SCHEDULE, 2, True)
    assert torch.equal(prefix, whole[:, :, :8])


@pytest.mark.parametrize(("window", "sink"), [(2, True), (3, False), (-1, True)])
def test_a_batch_of_two_clips_is_two_clips(window: int, sink: bool) -> None:
    dit = small_dit()
    inputs = (*latents(11, 3, batch=2), *text_and_mask(3, batch=2))
    both = edit_clip(dit, *inputs, SCHEDULE, window, sink)
    for index in range(2):
        alone = edit_clip(dit, *(x[index : index + 1] for x in inputs), SCHEDULE, window, sink)
        assert_near(both[index : index + 1], alone)


def test_the_window_shows_in_the_result() -> None:
    dit = small_dit()
    inputs = (*latents(14, 3), *text_and_mask(3))
    clips = [edit_clip(dit, *inputs, SCHEDULE, *window) for window in ((2, True), (2, False), (1, False), (-1, True))]
    assert all(torch.equal(clip[:, :, :8], clips[0][:, :, :8]) for clip in clips)
    assert all(not torch.allclose(a[:, :, 11:], b[:, :, 11:]) for a in clips for b in clips if a is not b)


def test_the_cache_pass_sees_the_clean_latent_and_is_skipped_at_the_end() -> None:
    dit, calls = small_dit(), []
    noise, source = latents(8, 3)
    clip = edit_clip(dit, noise, source, *text_and_mask(3), SCHEDULE, 2, True, recorder=calls.append)
    assert [(call.chunk, call.name) for call in calls] == [
        (0, "step0"),
        (0, "step1"),
        (0, "save"),
        (1, "step0"),
        (1, "step1"),
    ]
    save: DiTCall = calls[2]
    assert torch.equal(save.latent, clip[:, :, :5])
    assert save.timestep.tolist() == [0.0]
    assert [call.frames for call in calls] == [range(5)] * 3 + [range(5, 8)] * 2
    # All steps of a chunk read what the cache pass wrote, and nothing from each other.
    assert all(torch.equal(call.past[3].k, save.written[3].k) for call in calls[3:])
    assert calls[3].past is calls[4].past


def test_a_new_prompt_takes_effect_at_its_chunk() -> None:
    dit = small_dit()
    stream, prompts = open_stream(dit), (make_prompt(dit, 1), make_prompt(dit, 99))
    found = [stream.step(*latents(length, 10 + i), prompts[i >= 2]) for i, length in enumerate(LENGTHS)]
    equal = [torch.equal(a, b) for a, b in zip(found, solo(dit, 1), strict=True)]
    assert equal == [True, True, False, False]


def test_an_ended_stream_takes_no_more_chunks() -> None:
    dit = small_dit()
    stream, prompt = open_stream(dit), make_prompt(dit, 0)
    stream.step(*latents(5, 0), prompt, last=True)
    with pytest.raises(SequenceError, match="ended"):
        stream.step(*latents(3, 1), prompt)


def test_a_stream_stops_at_the_end_of_the_rotary_table() -> None:
    dit = small_dit()
    stream, prompt = open_stream(dit), make_prompt(dit, 0)
    stream.start = CONFIG.max_frames - 3
    stream.step(*latents(3, 0), prompt)
    with pytest.raises(SequenceError, match="64 to 66 are beyond"):
        stream.step(*latents(3, 1), prompt)


def test_a_clip_of_one_chunk_is_refused() -> None:
    with pytest.raises(ConfigError, match="too short"):
        edit_clip(small_dit(), *latents(3, 0), *text_and_mask(0), SCHEDULE, 2, True)


def test_solver_times() -> None:
    times = dpm_timesteps(50, shift=8.0)
    assert len(times) == 51
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(0.999875, abs=5e-7)
    assert times[-1] == 0.0


def test_solver_is_exact_where_the_clean_latent_is_constant() -> None:
    clean, noise = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    times = dpm_timesteps(6, shift=8.0)
    noisy = times[0] * noise + (1 - times[0]) * clean
    found = list(dpm_solver(lambda x, time: (x - clean) / time, noisy, times))
    for latent, time in zip(found, times[1:], strict=True):
        torch.testing.assert_close(latent, time * noise + (1 - time) * clean)


def test_solver_is_of_second_order() -> None:
    """x0 drifts linearly in log signal-to-noise: the extrapolation has to beat a first-order step by far."""
    exact = _drift_error(128)
    assert _drift_error(32) / exact > 8


def _drift_error(steps: int) -> float:
    """Distance at time 0.2 from the solution of dx = v dt with v = (x - x0(t)) / t, x0 = t, started at 0.8."""
    times = torch.linspace(0.8, 0.2, steps + 1, dtype=torch.float64).tolist()
    start = torch.zeros(1, dtype=torch.float64)
    *_, found = dpm_solver(lambda x, time: (x - time) / time, start, times)
    # x = -t ln t + c t solves the equation, and c = ln 0.8 starts it at zero.
    wanted = -0.2 * torch.log(torch.tensor(0.2 / 0.8, dtype=torch.float64))
    return float((found - wanted).abs())


def test_guidance_extrapolates_from_the_negative_branch() -> None:
    velocity = guided(lambda x, time: torch.cat([x[:2] + 1, x[2:] + 3]), scale=6.0)
    x = torch.randn(2, 3)
    torch.testing.assert_close(velocity(x, 0.5), x + 1 + 6 * 2)


def test_guided_clip_in_a_batch_of_two() -> None:
    dit, times = small_dit(), dpm_timesteps(3, shift=8.0)
    noise, source = latents(3, 0, batch=2)
    (text, mask), (other, _) = text_and_mask(1, batch=2), text_and_mask(2, batch=2)

    def sample(rows: slice) -> Tensor:
        both = torch.cat([other[rows], text[rows]]), torch.cat([mask[rows], mask[rows]])
        velocity = guided(clip_velocity(dit, torch.cat([source[rows], source[rows]]), *both), 6.0)
        *_, latent = dpm_solver(velocity, noise[rows], times)
        return latent

    together = sample(slice(0, 2))
    for index in range(2):
        assert_near(together[index : index + 1], sample(slice(index, index + 1)), 5e-4)
