"""The command `sana-stream` from end to end: real files, the real server, fake engines that invert every pixel."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import sana_client
from fakes.tiny_engines import SIZE, write_fake_repository
from sana_build.server import Ports, TritonServer

sys.path.insert(0, str(Path(__file__).parent))
from clips import write_clip

pytestmark = pytest.mark.server

SOURCES = str(Path(sana_client.__file__).parents[1])
PROGRAM = [sys.executable, "-c", "from sana_client.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "COLUMNS": "200", "NO_COLOR": "1"}
CHUNKS = 4
WHOLE = 33 + 3 * 24


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("cli")
    write_fake_repository(path / "repository", streams=2, chunks=CHUNKS)
    with TritonServer(path / "repository", Ports.free(), path / "server.log") as server:
        yield server.grpc_url


def sana_stream(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, **options)


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Source and edit of a video written side by side, float (F, H, W, 3)."""
    frames = read(path).astype(float)
    return frames[:, :, :SIZE], frames[:, :, SIZE:]


def refused(*arguments: object) -> str:
    """The one sentence on stderr of a run that must fail."""
    done = sana_stream(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("sana-stream: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    return lines[0].removeprefix("sana-stream: ")


def test_a_clip_is_edited_with_all_figures(tmp_path: Path, url: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=70, audio="aac")
    output, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    done = sana_stream(
        clip, "--prompt", "invert", "-o", output, "--url", url, "--side-by-side", "--contact-sheet", sheet, "--json"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["frames_in"] == figures["frames_out"] == 70
    assert figures["chunks"] == 3
    assert figures["restarts"] == 0
    assert figures["transport"] == "shm"
    assert 0 < figures["first_chunk"] <= figures["seconds"]
    assert 0 < figures["latency"]["p50"] <= figures["latency"]["p95"] <= figures["latency"]["p99"]
    assert figures["fps"] == pytest.approx(70 / figures["seconds"], rel=0.01)
    assert set(figures["stages"]) == {"text_encoder", "vae_encoder", "denoiser", "vae_decoder"}
    assert all(stage["requests"] >= 3 and stage["compute"] > 0 for stage in figures["stages"].values())
    source, edit = halves(output)
    assert len(edit) == 70
    assert np.abs(255 - source - edit).mean() < 6
    assert edit.std() > 5
    with av.open(str(output)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    with av.open(str(sheet)) as container:
        assert next(container.decode(video=0)).width > 3 * 200


def test_the_prompt_changes_at_the_chunk_boundary(tmp_path: Path, url: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=80)
    arguments = (clip, "--prompt", "invert", "--prompt-at", "1.0=keep", "--url", url, "--side-by-side")
    done = sana_stream(*arguments, "-o", tmp_path / "out.mkv", "--transport", "message")
    assert done.returncode == 0, done.stderr
    source, edit = halves(tmp_path / "out.mkv")
    # One second is frame 25, inside chunk 0; the next chunk begins with frame 33.
    assert np.abs(255 - source - edit)[:33].mean() < 6
    assert np.abs(source - edit)[33:].mean() < 6


def test_a_stream_longer_than_the_model_holds_starts_again_and_says_so(tmp_path: Path, url: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=WHOLE + 40)
    done = sana_stream(clip, "--prompt", "invert", "-o", tmp_path / "out.mp4", "--url", url, "--side-by-side", "--json")
    assert done.returncode == 0, done.stderr
    assert f"the model holds {CHUNKS} chunks: a new sequence has started" in done.stderr
    figures = json.loads(done.stdout)
    assert (figures["restarts"], figures["chunks"], figures["frames_out"]) == (1, CHUNKS + 2, WHOLE + 40)
    source, edit = halves(tmp_path / "out.mp4")
    assert np.abs(255 - source - edit).mean() < 6


def test_a_pipe_is_edited(tmp_path: Path, url: str) -> None:
    clip = write_clip(tmp_path / "clip.ts", frames=60, format="mpegts")
    with clip.open("rb") as file:
        done = sana_stream("-", "--prompt", "invert", "-o", tmp_path / "out.mp4", "--url", url, stdin=file)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out.mp4")) == 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_live_input_leaves_a_playable_file(tmp_path: Path, url: str, number: signal.Signals) -> None:
    clip, output = write_clip(tmp_path / "clip.ts", frames=100, format="mpegts"), tmp_path / "out.mp4"
    command = [*PROGRAM, "-", "--prompt", "invert", "-o", str(output), "--url", url, "--json"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(clip.read_bytes())
        process.stdin.flush()
        wait_for(output)
        process.send_signal(number)
        # The pipe stays open: whoever stops a camera does not wait for its next frame.
        out = process.stdout.read() if process.stdout else b""
        assert process.wait(30) == 0
    figures = json.loads(out)
    assert figures["stopped"]
    assert len(read(output)) == figures["frames_out"] >= 33


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)


def test_bad_inputs_are_one_sentence(tmp_path: Path, url: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=40)
    tail = ("--prompt", "invert", "--url", url, "-o")
    assert "is the input" in refused(clip, *tail, clip)
    assert "unknown output suffix" in refused(clip, *tail, tmp_path / "out.avi")
    assert "does not exist" in refused(clip, *tail, tmp_path / "nowhere" / "out.mp4")
    assert "cannot be read as a video" in refused(tmp_path / "absent.mp4", *tail, tmp_path / "out.mp4")
    short = write_clip(tmp_path / "short.mp4", frames=32)
    assert "has 32 frames: this model needs at least 33" in refused(short, *tail, tmp_path / "out.mp4")
    assert "is not SECONDS=PROMPT" in refused(clip, *tail, tmp_path / "out.mp4", "--prompt-at", "night")
    assert "the prompt is empty" in refused(clip, "--prompt", "", "--url", url, "-o", tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_missing_server_or_model_is_one_sentence(tmp_path: Path, url: str) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=40)
    tail = (clip, "--prompt", "invert", "-o", tmp_path / "out.mp4")
    assert "no Triton server answers at 127.0.0.1:9" in refused(*tail, "--url", "127.0.0.1:9")
    assert "has no model 'nobody'" in refused(*tail, "--url", url, "--model", "nobody")
    assert "choose one of auto, message, shm" in refused(*tail, "--url", url, "--transport", "pigeon")


def test_a_prompt_that_fails_later_leaves_what_was_done(tmp_path: Path, url: str) -> None:
    clip, output = write_clip(tmp_path / "clip.mp4", frames=80), tmp_path / "out.mp4"
    sentence = refused(clip, "--prompt", "invert", "--prompt-at", "1.5= ", "-o", output, "--url", url)
    assert "chunk 2 failed" in sentence
    assert len(read(output)) == 57


def test_help_is_quick_and_teaches() -> None:
    best = 9.0
    for _ in range(3):
        began = time.monotonic()
        done = sana_stream("--help")
        best = min(best, time.monotonic() - began)
    assert best < 0.5
    assert "Examples" in done.stdout
    assert "--prompt-at" in done.stdout
