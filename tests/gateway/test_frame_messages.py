"""Encodings and framings of frames, there and back."""

import zlib
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sana_client.errors import ServerLost, UsageError
from sana_client.gateway import messages as m
from sana_client.gateway.encodings import FrameDecoder, make_encoder
from sana_client.gateway.framing import ChunkHeader, Reader, pack
from sana_client.gateway.refusals import InvalidRequest
from sana_client.gateway.source import decode_frames

CHUNK = ChunkHeader("s_1", 3, 9, 100, tuple(range(40)))


def video(frames: int, height: int = 4, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def unpacked(messages: list[bytes], reader: Reader) -> np.ndarray:
    found = [reader.feed(message) for message in messages]
    return np.concatenate([item[1] for item in found if item])


@pytest.mark.parametrize("framing", ["documented", "current"])
@pytest.mark.parametrize("form", ["raw", "delta-gzip"])
@pytest.mark.parametrize("size", [(4, 6), (64, 96)])
def test_chunks_come_back_exactly(framing: str, form: str, size: tuple[int, int]) -> None:
    encoder, reader = make_encoder(form), Reader()
    for frames in (video(33, *size), video(24, *size, seed=1)):
        np.testing.assert_array_equal(unpacked(pack(frames, CHUNK, encoder, framing).messages, reader), frames)


def test_the_keys_of_a_header() -> None:
    header = msgspec.msgpack.decode(pack(video(17), CHUNK, make_encoder("raw"), "documented").messages[1])
    assert header == {
        "type": "frame_batch",
        "request_id": "s_1",
        "chunk_index": 3,
        "event_id": 9,
        "content_type": "application/x-raw-rgb",
        "encoding": "raw",
        "format": "rgb24",
        "num_frames": 1,
        "width": 6,
        "height": 4,
        "channels": 3,
        "bytes_per_frame": 72,
        "raw_size": 72,
        "total_size": 72,
        "frame_batch_index": 1,
        "num_frame_batches": 2,
        "is_final_frame_batch": True,
        "frame_number": 116,
        "captured_ms": [16],
        "payload": video(17)[16].tobytes(),
    }


@pytest.mark.parametrize(("width", "apart"), [(21, False), (22, True)])
def test_the_current_profile_sends_large_payloads_after_their_header(width: int, apart: bool) -> None:
    # 16 frames of 64 x 21 pixels are 64512 bytes, one column more is above the bound.
    messages = pack(video(16, 64, width), CHUNK, make_encoder("raw"), "current").messages
    assert len(messages) == (2 if apart else 1)
    header = msgspec.msgpack.decode(messages[0])
    assert header["type"] == ("frame_batch_header" if apart else "frame_batch")
    assert ("payload" in header) is not apart


def test_delta_gzip_is_one_gzip_member_of_differences() -> None:
    frames = video(3)
    encoder = make_encoder("delta-gzip")
    first, second = encoder.encode(frames), encoder.encode(frames)
    assert "delta_reference" not in first.header
    assert second.header["delta_reference"] == "previous-frame"
    plain = np.frombuffer(zlib.decompress(second.payload, 31), np.uint8).reshape(frames.shape)
    np.testing.assert_array_equal(plain, frames ^ np.stack([frames[2], frames[0], frames[1]]))
    encoder.key()
    assert "delta_reference" not in encoder.encode(frames).header


def test_a_delta_without_the_frame_before_it_is_refused() -> None:
    encoder = make_encoder("delta-gzip")
    encoder.encode(video(2))
    later = encoder.encode(video(2))
    with pytest.raises(ServerLost, match="wait for a key batch"):
        FrameDecoder().decode(later.header, later.payload)


def test_damaged_payloads_are_named() -> None:
    for form in ("raw", "delta-gzip"):
        found = make_encoder(form).encode(video(2))
        with pytest.raises(ServerLost, match="damaged"):
            FrameDecoder().decode(found.header, found.payload[:-9])


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_previews_are_scaled_down_and_described(form: str) -> None:
    found = make_encoder(form, quality=80, max_width=48).encode(video(2, 60, 96))
    assert (found.header["width"], found.header["height"]) == (48, 30)
    assert (found.header["source_width"], found.header["source_height"]) == (96, 60)
    assert found.header["bytes_per_frame"] == 60 * 96 * 3
    assert FrameDecoder().decode(found.header, found.payload).shape == (2, 30, 48, 3)


def test_unusable_forms_are_refused() -> None:
    for bad in ({"name": "avi"}, {"name": "jpeg", "quality": 101}, {"name": "jpeg", "max_width": 0}):
        with pytest.raises(UsageError):
            make_encoder(**bad)


def test_frames_of_any_size_become_the_models() -> None:
    raw = m.Frame(video(2, 30, 50).tobytes(), "rgb24", 50, 30)
    assert [pixels.shape for pixels in decode_frames(raw, (16, 16), 10**6)] == [(16, 16, 3)] * 2
    exact = video(1, 16, 16)
    found = decode_frames(m.Frame(exact.tobytes(), "rgb24", 16, 16), (16, 16), 10**6)
    np.testing.assert_array_equal(found[0], exact[0])
    png = make_encoder("webp").encode(video(1, 33, 21))
    assert decode_frames(m.Frame(png.payload), (16, 16), 10**6)[0].shape == (16, 16, 3)


@pytest.mark.parametrize(
    "frame",
    [
        m.Frame(b""),
        m.Frame(b"GIF89a" + bytes(100)),
        m.Frame(bytes(12), "rgb24"),
        m.Frame(bytes(11), "rgb24", 2, 2),
        m.Frame(b"", "rgb24", 2, 2),
        m.Frame(bytes(12), "rgb24", 2**40, 2**40),
    ],
)
def test_what_is_no_frame_is_refused(frame: m.Frame) -> None:
    with pytest.raises(InvalidRequest):
        decode_frames(frame, (16, 16), 10**6)


JSONABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(sorted({*m.Init.__struct_encode_fields__, "type", "data", "kind", "payload", "event_id"}))
WORDS = st.sampled_from(["init", "event", *m.COMMANDS, "prompt", "frame"])


def read_anything(data: bytes | str) -> None:
    """What the gateway does with a message before a session sees it."""
    with suppress(InvalidRequest):
        found = m.decode_map(data)
        if m.is_command(found):
            m.read_command(found)
        elif found.get("type") == "event":
            event = m.read_event(found)
            decode_frames(m.read_frame(event.payload), (16, 16), 10**4)
        else:
            m.read_init(found)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_reason(data: bytes) -> None:
    read_anything(data)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_a_reason(data: str) -> None:
    read_anything(data)


@given(st.dictionaries(KEYS | st.text(max_size=5), JSONABLE | WORDS, max_size=8))
def test_any_map_is_read_or_refused_with_a_reason(found: dict) -> None:
    read_anything(msgspec.msgpack.encode(found))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        m.decode_map(b"\x91" * 100000)
    with pytest.raises(InvalidRequest):
        m.decode_map("[" * 100000)
