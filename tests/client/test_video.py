"""Reading, cutting and writing real video files."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from clips import RATE, picture, write_clip, write_tone

from sana_client.chunks import Chunk, Prompts, cut
from sana_client.errors import UsageError, VideoError
from sana_client.protocol import StreamInfo
from sana_client.sheet import ContactSheet, png
from sana_client.video import VideoReader
from sana_client.writer import VideoWriter, check_output

INFO = StreamInfo("m", first_frames=9, steady_frames=4, height=32, width=48, max_chunks=5, streams=1, stages=())
PLAIN = Prompts("invert")


def read(path: Path | str, height: int = 48, width: int = 64) -> list[np.ndarray]:
    reader = VideoReader(str(path))
    frames = [frame.pixels for frame in reader.frames(height, width)]
    reader.close()
    return frames


def times(path: Path, kind: str = "video") -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(**{kind: 0})]


def copy(source: Path, target: Path) -> VideoWriter:
    """Pass a video through reader, chunks and writer, unedited."""
    reader = VideoReader(str(source))
    writer = VideoWriter(target, INFO.height, INFO.width, reader, check_output(target, str(source)))
    for chunk in cut(reader, INFO, PLAIN):
        writer.write(chunk.frames[: len(chunk.pts)], chunk.pts, chunk.audio)
    writer.write(np.empty(0), (), reader.take_audio())
    writer.close()
    reader.close()
    return writer


def close(a: np.ndarray, b: np.ndarray, limit: float = 3.0) -> bool:
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < limit


def test_frames_are_read_in_order(tmp_path: Path) -> None:
    frames = read(write_clip(tmp_path / "clip.mp4", frames=20))
    assert len(frames) == 20
    assert all(close(frame, picture(index, 48, 64)) for index, frame in enumerate(frames))


@pytest.mark.parametrize("size", [(47, 63), (33, 90), (90, 34)])
def test_any_size_is_scaled_to_cover(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = read(write_clip(tmp_path / "clip.mkv", frames=3, size=size), 32, 48)
    assert {frame.shape for frame in frames} == {(32, 48, 3)}


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_recording_is_turned_upright(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "clip.mp4", frames=3, rotation=degrees)
    upright = np.rot90(picture(0, 48, 64), degrees // 90)
    assert close(read(path, *upright.shape[:2])[0], upright)


@pytest.mark.parametrize("format", ["mpegts", "matroska"])
def test_a_stream_without_a_file_is_read_from_a_pipe(tmp_path: Path, format: str) -> None:
    path = write_clip(tmp_path / "clip", frames=30, format=format)
    code = "from sana_client.video import VideoReader; print(len(list(VideoReader('-').frames(32, 48))))"
    with path.open("rb") as file:
        assert run_python(code, file) == "30"


def run_python(code: str, stdin: object) -> str:
    import subprocess

    import sana_client

    root = str(Path(sana_client.__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"]
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=True).stdout.strip()


def test_the_length_is_known_for_a_file(tmp_path: Path) -> None:
    assert VideoReader(str(write_clip(tmp_path / "clip.mp4", frames=50))).length == 50
    assert VideoReader(str(write_clip(tmp_path / "clip.mkv", frames=50))).length == 50


def chunks(path: Path, prompts: Prompts = PLAIN) -> list[Chunk]:
    return list(cut(VideoReader(str(path)), INFO, prompts))


@pytest.mark.parametrize(
    ("frames", "grid", "real"),
    [
        (9, [9], [9]),
        (10, [9, 4], [9, 1]),
        (13, [9, 4], [9, 4]),
        (25, [9, 4, 4, 4, 4], [9, 4, 4, 4, 4]),
        (27, [9, 4, 4, 4, 4, 9], [9, 4, 4, 4, 4, 2]),
        (40, [9, 4, 4, 4, 4, 9, 4, 4], [9, 4, 4, 4, 4, 9, 4, 2]),
    ],
)
def test_the_chunk_grid(tmp_path: Path, frames: int, grid: list[int], real: list[int]) -> None:
    found = chunks(write_clip(tmp_path / "clip.mp4", frames=frames))
    assert [len(chunk.frames) for chunk in found] == grid
    assert [len(chunk.pts) for chunk in found] == real
    assert [chunk.index for chunk in found] == [index % 5 for index in range(len(grid))]
    assert [chunk.last for chunk in found] == [False] * (len(grid) - 1) + [grid[-1] != real[-1]]


def test_a_part_of_a_chunk_is_filled_up_with_its_last_frame(tmp_path: Path) -> None:
    last = chunks(write_clip(tmp_path / "clip.mp4", frames=11))[-1]
    assert not np.array_equal(last.frames[0], last.frames[1])
    for filler in last.frames[2:]:
        np.testing.assert_array_equal(filler, last.frames[1])


def test_prompts_change_at_chunk_boundaries(tmp_path: Path) -> None:
    prompts = Prompts.parse("day", ["0.5=dusk", "0.4=x=y"])
    found = chunks(write_clip(tmp_path / "clip.mp4", frames=21), prompts)
    assert [float(chunk.pts[0]) for chunk in found] == sorted(float(chunk.pts[0]) for chunk in found)
    # Chunks start at frames 0, 9, 13 and 17, that is after 0, 0.36, 0.52 and 0.68 seconds.
    assert [chunk.prompt for chunk in found] == ["day", "day", "dusk", "dusk"]
    assert prompts.at(0.4) == "x=y"


@pytest.mark.parametrize("change", ["dusk", "=dusk", "soon=dusk", "-1=dusk", "nan=dusk"])
def test_a_malformed_prompt_change_is_refused(change: str) -> None:
    with pytest.raises(UsageError, match="is not SECONDS=PROMPT"):
        Prompts.parse("day", [change])


@pytest.mark.parametrize("frames", [1, 8])
def test_a_video_shorter_than_the_first_chunk_is_refused(tmp_path: Path, frames: int) -> None:
    with pytest.raises(VideoError, match=f"has {frames} frames: this model needs at least 9"):
        chunks(write_clip(tmp_path / "clip.mp4", frames=frames))


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.mp4", b""), ("text.mp4", b"not a video at all" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match="cannot be read as a video"):
            VideoReader(str(tmp_path / name))
    with pytest.raises(VideoError, match="No such file"):
        VideoReader(str(tmp_path / "absent.mp4"))


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48000)
        write_tone(container, sound, seconds=1)
    with pytest.raises(VideoError, match="has no video stream"):
        VideoReader(str(path))


def test_a_cut_off_file_gives_what_it_has(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", frames=40)
    part = tmp_path / "part.mkv"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert 9 < len(read(part)) < 40


def test_damage_is_told_after_the_chunks_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = VideoReader(str(write_clip(tmp_path / "clip.mp4", frames=40)))
    whole = reader._decoded()

    def damaged() -> object:
        for _ in range(15):
            yield next(whole)
        raise VideoError("damaged")

    monkeypatch.setattr(reader, "_decoded", damaged)
    found = []
    with pytest.raises(VideoError, match="damaged"):
        found.extend(cut(reader, INFO, PLAIN))
    assert [len(chunk.pts) for chunk in found] == [9, 4, 2]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_written_frames_keep_their_pictures_and_times(tmp_path: Path, suffix: str) -> None:
    source = write_clip(tmp_path / "clip.mp4", frames=31)
    target = tmp_path / f"out{suffix}"
    copy(source, target)
    assert times(target) == pytest.approx(times(source), abs=0.0015)
    wanted, found = read(source, INFO.height, INFO.width), read(target, INFO.height, INFO.width)
    assert all(close(a, b) for a, b in zip(wanted, found, strict=True))
    with av.open(str(target)) as container:
        assert container.streams.video[0].average_rate == pytest.approx(RATE, rel=0.01)
        assert container.streams.video[0].codec_context.name == "h264"


def test_a_variable_frame_rate_stays_as_it_is(tmp_path: Path) -> None:
    gaps = [10, 40, 40, 200, 15, 33, 500, 20] * 4
    pts = [0, *np.cumsum(gaps).tolist()]
    source, target = write_clip(tmp_path / "clip.mkv", pts=pts), tmp_path / "out.mp4"
    copy(source, target)
    assert times(target) == pytest.approx([time / 1000 for time in pts], abs=0.0015)


def test_a_stream_that_starts_late_starts_at_zero(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.ts", pts=[5000 + 40 * index for index in range(20)], format="mpegts")
    target = tmp_path / "out.mp4"
    assert times(source)[0] > 4
    copy(source, target)
    assert times(target)[0] == pytest.approx(0, abs=0.002)
    assert np.diff(times(target)) == pytest.approx(0.04, abs=0.002)


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mp4"), ("libmp3lame", ".mkv"), ("aac", ".mov")])
def test_sound_is_copied_bit_for_bit(tmp_path: Path, codec: str, suffix: str) -> None:
    source = write_clip(tmp_path / "clip.mkv", frames=50, audio=codec)
    target = tmp_path / f"out{suffix}"
    assert copy(source, target).warnings == []
    assert packets(source) == packets(target)
    assert times(target, "audio")[5] == pytest.approx(times(source, "audio")[5], abs=0.003)


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_sound_that_does_not_fit_is_left_out_with_a_warning(tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "clip.mov", frames=20, audio="pcm_alaw"), tmp_path / "out.mp4"
    assert "cannot hold pcm_alaw audio" in copy(source, target).warnings[0]
    with av.open(str(target)) as container:
        assert not container.streams.audio


def test_colours_survive_writing_and_reading(tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "clip.mp4", frames=9), tmp_path / "out.mp4"
    reader = VideoReader(str(source))
    writer = VideoWriter(target, 32, 48, reader, check_output(target, str(source)))
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [250, 200, 30]], np.uint8)
    writer.write(np.broadcast_to(colours[:, None, None], (5, 32, 48, 3)), range(5), [])
    writer.close()
    for colour, frame in zip(colours, read(target, 32, 48), strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 6


def test_nothing_is_written_before_the_first_frame(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"something dear")
    source = write_clip(tmp_path / "clip.mp4", frames=9)
    VideoWriter(target, 32, 48, VideoReader(str(source)), check_output(target, str(source))).close()
    assert target.read_bytes() == b"something dear"


def test_outputs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", frames=1)
    with pytest.raises(UsageError, match="is the input"):
        check_output(source, str(source))
    with pytest.raises(UsageError, match=r"unknown output suffix '.gif': choose one of .mkv, .mov, .mp4"):
        check_output(tmp_path / "out.gif", str(source))
    with pytest.raises(UsageError, match="does not exist"):
        check_output(tmp_path / "nowhere" / "out.mp4", str(source))
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(tmp_path / "folder.mp4", str(source))


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", frames=9)
    form = check_output(tmp_path / "out.mkv", str(source))
    writer = VideoWriter(Path("/dev/full"), 32, 48, VideoReader(str(source)), form)
    with pytest.raises(VideoError, match="No space left"):
        write_and_close(writer)


def write_and_close(writer: VideoWriter) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    writer.write(noise, range(9), [])
    writer.close()


def test_a_contact_sheet_spreads_over_a_video_of_any_length() -> None:
    sheet = ContactSheet(columns=4)
    for index in range(1000):
        sheet.add(np.full((32, 48, 3), index // 4, np.uint8), np.full((32, 48, 3), 255 - index // 4, np.uint8))
        assert len(sheet._pairs) <= 8
    image = sheet.image()
    row = image[10, 120::246, 0].astype(int)
    assert len(row) == 4
    assert (np.diff(row) > 40).all()
    np.testing.assert_array_equal(255 - row, image[180, 120::246, 0])


def test_a_png_holds_exactly_the_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (21, 35, 3), np.uint8)
    (tmp_path / "sheet.png").write_bytes(png(picture))
    with av.open(str(tmp_path / "sheet.png")) as container:
        np.testing.assert_array_equal(next(container.decode(video=0)).to_ndarray(format="rgb24"), picture)
