"""Rollouts over real clips and the calibration taken from them, on the smallest complete model."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import typer
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from micro import MICRO
from sana_build.calibrate import calibrate, load_calibration, quick_calibration, shipped_clip, sized, small_frames
from sana_build.calibrate_command import calibrate as calibrate_command
from sana_build.rollouts import Machine, batch, load_scenes, read_clip, rollout, there_and_back
from sana_export.checkpoint import resolve
from sana_export.configs import SANA_STREAMING, TINY
from sana_export.pipeline import OfflinePipeline
from sana_export.sampler import DiTStream
from sana_quant.calibration import Calibration, observe
from sana_quant.fake import fake_quantised
from sana_quant.groups import layers
from sana_quant.policy import load_policy
from sana_runtime.errors import ConfigError, SequenceError
from sana_runtime.schedule import chunk_noise, streaming_schedule

CPU = Machine("cpu", torch.float32)
QUIET = Console(quiet=True)
PROMPTS = ["make it blue", "make it night"]
CHECKPOINT = resolve("random:0", MICRO)


@pytest.fixture(scope="module")
def scenes(clip: Path) -> list:
    return load_scenes(MICRO, CHECKPOINT, [clip], PROMPTS, 3, CPU)


@pytest.fixture(scope="module")
def dit():
    return CHECKPOINT.load_dit(MICRO.dit)


def roll(dit, scene) -> torch.Tensor:
    return torch.cat(list(rollout(dit, MICRO.stream, scene)), dim=2)


def test_a_scene_is_what_the_pipeline_sees(clip: Path, scenes: list) -> None:
    pipeline = OfflinePipeline.load(MICRO, CHECKPOINT)
    wanted = pipeline.project(PROMPTS[1])
    with torch.inference_mode():
        found = pipeline.dit.prompt(scenes[1].text, scenes[1].mask)
    assert all(torch.equal(a, b) for a, b in zip((*found.k, *found.v), (*wanted.k, *wanted.v), strict=True))
    assert [source.shape for source in scenes[1].sources] == [
        MICRO.geometry.latent_shape(MICRO.geometry.chunk(index)) for index in range(3)
    ]


def test_a_rollout_is_the_stream_that_the_sampler_makes(scenes: list, dit) -> None:
    scene = scenes[0]
    stream = DiTStream(dit, streaming_schedule(MICRO.stream.steps), MICRO.stream.window, MICRO.stream.sink)
    with torch.inference_mode():
        prompt = dit.prompt(scene.text, scene.mask)
        wanted = [
            stream.step(torch.from_numpy(chunk_noise(0, index, tuple(source.shape))), source, prompt)
            for index, source in enumerate(scene.sources)
        ]
    found = list(rollout(dit, MICRO.stream, scene))
    assert len(found) == 3
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_noise_is_the_same_for_every_model_and_differs_between_scenes(scenes: list, dit) -> None:
    again = load_scenes(MICRO, CHECKPOINT, [shipped_clip()], PROMPTS, 3, CPU)
    assert torch.equal(roll(dit, scenes[0]), roll(dit, again[0]))
    assert [scene.seeds for scene in scenes] == [(0,), (1,)]
    assert not torch.equal(roll(dit, scenes[0]), roll(dit, replace(scenes[0], seeds=(1,))))


def test_scenes_in_a_batch_are_edited_as_each_alone(scenes: list, dit) -> None:
    together = roll(dit, batch(scenes))
    for row, scene in zip(together.split(1), scenes, strict=True):
        torch.testing.assert_close(row, roll(dit, scene), rtol=1e-4, atol=1e-5)


def test_a_prefix_of_a_rollout_is_the_shorter_rollout(clip: Path, scenes: list, dit) -> None:
    short = load_scenes(MICRO, CHECKPOINT, [clip], PROMPTS[:1], 2, CPU)[0]
    assert torch.equal(roll(dit, short), roll(dit, scenes[0])[:, :, : 5 + 3])


def test_a_model_in_bf16_takes_and_gives_float32_and_keeps_no_hook(scenes: list, dit) -> None:
    narrow = CHECKPOINT.load_dit(MICRO.dit, torch.bfloat16)
    found, wanted = roll(narrow, scenes[0]), roll(dit, scenes[0])
    assert found.dtype == torch.float32
    assert 0 < float((found - wanted).std() / wanted.std()) < 0.1
    assert not narrow._forward_hooks
    assert not narrow._forward_pre_hooks


def test_abandoned_rollouts_leave_the_model_as_it_was(scenes: list, dit) -> None:
    editing = rollout(dit, MICRO.stream, scenes[0])
    next(editing)
    editing.close()
    assert not dit._forward_hooks


def test_a_short_clip_is_played_there_and_back(clip: Path) -> None:
    geometry = MICRO.geometry
    long = read_clip(clip, geometry, 6)
    assert len(long) == 33 + 5 * 24
    frames = 132
    assert np.array_equal(long[frames:], long[frames - 2 : frames - 2 - (len(long) - frames) : -1])
    assert np.array_equal(read_clip(clip, geometry, 2), long[: 33 + 24])


@settings(deadline=None)
@given(length=st.integers(2, 50), count=st.integers(1, 300))
def test_there_and_back_moves_one_frame_at_a_time_and_stays_inside(length: int, count: int) -> None:
    positions = there_and_back(length, count)
    assert positions[: min(length, count)].tolist() == list(range(min(length, count)))
    assert set(np.abs(np.diff(positions))) <= {1}
    assert len(positions) == count
    assert 0 <= positions.min() <= positions.max() < length


def write_grey_clip(path: Path, frames: int) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        for _ in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), 90, np.uint8), format="rgb24")))
        container.mux(video.encode(None))
    return path


def test_clips_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no video")
    short = write_grey_clip(tmp_path / "short.mp4", frames=20)
    for clip, complaint in ((text, "cannot be read as a video"), (short, "has 20 frames: this model needs at least")):
        with pytest.raises(ConfigError, match=f"--clip .*{clip.name} {complaint}"):
            load_scenes(MICRO, CHECKPOINT, [clip], PROMPTS, 2, CPU)


@pytest.fixture(scope="module")
def calibration(clip: Path) -> Calibration:
    return calibrate(MICRO, CHECKPOINT, [clip], PROMPTS, 2, QUIET)


def test_a_calibration_is_what_the_layers_saw_in_the_rollouts(clip: Path, calibration: Calibration, dit) -> None:
    with observe(dit) as observer:
        for scene in load_scenes(MICRO, CHECKPOINT, [clip], PROMPTS, 2, CPU):
            roll(dit, scene)
    assert calibration.amax == observer.calibration({}).amax
    assert calibration.amax.keys() == {layer.path for layer in layers(MICRO.dit.depth)}


def test_a_calibration_says_what_it_was_made_from(calibration: Calibration) -> None:
    assert calibration.about == {
        "model": "micro",
        "checkpoint": "random weights, seed 0",
        "size": "48x32",
        "steps": 4,
        "chunks": 2,
        "scenes": [f"big-buck-bunny: {prompt}" for prompt in PROMPTS],
        "headroom": 4.0,
        "computed": f"{Machine.best().device}, {Machine.best().dtype}".replace("torch.", ""),
    }


def test_an_fp8_model_calibrated_so_edits_nearly_alike(calibration: Calibration, scenes: list, dit) -> None:
    wanted = roll(dit, scenes[0])
    found = roll(fake_quantised(dit, load_policy("fp8", MICRO.dit.depth), calibration), scenes[0])
    assert 0 < float((found - wanted).square().mean().sqrt() / wanted.std()) < 0.2


@pytest.mark.parametrize(("divisor", "size"), [(5, (256, 160)), (2, (640, 352)), (1, (1280, 704))])
def test_small_frames_are_what_the_vae_divides(divisor: int, size: tuple[int, int]) -> None:
    small = small_frames(SANA_STREAMING, divisor)
    assert (small.width, small.height) == size


def test_a_quick_calibration_uses_small_frames() -> None:
    assert quick_calibration(MICRO, CHECKPOINT, QUIET).about["size"] == "16x16"


def test_a_calibration_file_is_read_for_its_model_only(tmp_path: Path, calibration: Calibration) -> None:
    path = tmp_path / "c.json"
    calibration.write(path)
    assert load_calibration(path, MICRO) == calibration
    with pytest.raises(ConfigError, match=r"c\.json was made for micro: run .* --model other"):
        load_calibration(path, replace(MICRO, name="other"))
    with pytest.raises(ConfigError, match=r"c\.json has no entry for the layer blocks\.4\.attn\.k"):
        load_calibration(path, replace(MICRO, dit=replace(MICRO.dit, depth=5)))


def test_a_size_is_two_numbers_that_the_vae_divides() -> None:
    assert (sized(MICRO, "64x16").width, sized(MICRO, "64x16").height) == (64, 16)
    with pytest.raises(ConfigError, match="'64' is not a frame size: write WIDTHxHEIGHT, as 48x32"):
        sized(MICRO, "64")
    with pytest.raises(ConfigError, match="65x16 is not a multiple of"):
        load_scenes(sized(MICRO, "65x16"), CHECKPOINT, [shipped_clip()], PROMPTS, 2, CPU)


def command(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(calibrate_command)
    return CliRunner().invoke(app, [*arguments, "--model", "tiny", "--checkpoint", "random:0"])


def test_the_command_writes_a_file_that_a_build_reads(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    result = command("-o", str(path), "--size", "64x48", "--chunks", "1", "--prompt", "make it blue")
    assert result.exception is None
    assert load_calibration(path, TINY).about["size"] == "64x48"


def test_the_command_refuses_an_output_before_it_works(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "ranges.json"):
        assert isinstance(error := command("-o", str(path)).exception, ConfigError)
        assert "name a file in an existing folder" in str(error)


def test_streams_beyond_the_rotary_table_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(SequenceError, match="beyond the longest stream"):
        load_scenes(MICRO, CHECKPOINT, [shipped_clip()], PROMPTS, 400, CPU)
