"""`sana-gateway check`: recorded vectors against this implementation, one line per section.

A file of vectors is a JSON object. Its sections, each a list of cases with an optional `name`:

`event_sampling`: `model`, and a `timeline` of events (`event`, `event_id`) and samples (`sample`: how many slots are
taken, `slots` and `event_id`: what comes out).
`delta_gzip`: `width`, `height`, `frames_hex`, and `batches` (`count`, `delta_hex`, `payload_hex`, `delta_reference`);
`batches_are` is "consecutive", or "alternatives" for the same frames compressed in several ways.
`frame_framing`: `framing`, `format`, `shape`, `frames_hex`, and the `headers` to find, whose keys all have to agree.
`rejected_inits`: `message_hex`, bytes that no session may be opened by.
Plain texts beside the sections are notes.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sana_client.errors import ClientError, UsageError, choose
from sana_client.gateway import messages as m
from sana_client.gateway.camera import PROFILES, CameraInput, parse_camera
from sana_client.gateway.encodings import GZIP, FrameDecoder, geometry, make_encoder
from sana_client.gateway.framing import ChunkHeader, pack

Case = dict[str, Any]
CHUNK = ChunkHeader("check_0", 0, None, 0, ())


@dataclass(frozen=True)
class Outcome:
    """How one section went; `failures` are sentences."""

    section: str
    cases: int
    failures: tuple[str, ...]

    def line(self) -> str:
        """The section as it is printed."""
        verdict = "FAIL" if self.failures else "ok"
        return "\n  ".join([f"{verdict:4} {self.section}: {self.cases} cases", *self.failures])


def check_file(path: Path) -> Iterator[Outcome]:
    """Every section of a file of vectors; raises UsageError for a file that is none."""
    try:
        sections = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no vectors ({error}): give a JSON file") from None
    if not isinstance(sections, dict):
        raise UsageError(f"{path} holds no vectors: give a JSON object of sections")
    for name, found in sections.items():
        if isinstance(found, str):
            continue
        cases = found if isinstance(found, list) else [found]
        failures = [text for number, case in enumerate(cases) if (text := _failure(name, number, case))]
        yield Outcome(name, len(cases), tuple(failures))


def _failure(section: str, number: int, case: Case) -> str:
    try:
        choose("section", section, CHECKS)(case)
    except (AssertionError, ClientError, KeyError, TypeError, ValueError) as error:
        name = case.get("name", number) if isinstance(case, dict) else number
        return f"{name}: {type(error).__name__} {error}"
    return ""


def _agree(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise AssertionError(f"{what} is {found!r:.200}, recorded was {wanted!r:.200}")


def _event_sampling(case: Case) -> None:
    camera = CameraInput(choose("model", case["model"], PROFILES))
    for step, moment in enumerate(case["timeline"]):
        if "event" in moment:
            camera.receive(parse_camera(moment["event"]), moment.get("event_id"))
            continue
        sampled = camera.sample(moment["sample"])
        found = None if sampled.slots is None else [list(actions) for actions in sampled.slots]
        _agree(f"sample {step}", found, moment["slots"])
        _agree(f"event id of sample {step}", sampled.event_id, moment.get("event_id"))


def _delta_gzip(case: Case) -> None:
    shape = (-1, case["height"], case["width"], 3)
    frames = np.frombuffer(bytes.fromhex("".join(case["frames_hex"])), np.uint8).reshape(shape)
    decoder, encoder, start = FrameDecoder(), make_encoder("delta-gzip"), 0
    for batch in case["batches"]:
        if case.get("batches_are") == "alternatives":
            decoder, encoder, start = FrameDecoder(), make_encoder("delta-gzip"), 0
        part = frames[start : start + batch.get("count", len(frames))]
        start += len(part)
        header = geometry(part) | {"encoding": "delta-gzip", "raw_size": part.nbytes}
        reference = batch.get("delta_reference")
        recorded = header | ({"delta_reference": reference} if reference else {})
        _agree(
            "decoded frames", decoder.decode(recorded, bytes.fromhex(batch["payload_hex"])).tobytes(), part.tobytes()
        )
        encoded = encoder.encode(part)
        _agree("delta_reference", encoded.header.get("delta_reference"), reference)
        found = zlib.decompress(encoded.payload, GZIP).hex()
        _agree("delta before compression", found, batch["delta_hex"])


def _frame_framing(case: Case) -> None:
    frames = np.frombuffer(bytes.fromhex(case["frames_hex"]), np.uint8).reshape(case["shape"])
    messages = pack(frames, CHUNK, make_encoder(case["format"]), case["framing"]).messages
    headers = [found for data in messages if isinstance(found := _map(data), dict)]
    _agree("number of headers", len(headers), len(case["headers"]))
    for found, wanted in zip(headers, case["headers"], strict=True):
        _agree("header", {key: found.get(key) for key in wanted}, wanted)


def _map(data: bytes) -> Any:
    try:
        return msgspec.msgpack.decode(data)
    except msgspec.DecodeError:
        return None


def _rejected_inits(case: Case) -> None:
    try:
        m.read_init(m.decode_map(bytes.fromhex(case["message_hex"])))
    except ClientError:
        return
    raise AssertionError("the init was accepted")


CHECKS: dict[str, Callable[[Case], None]] = {
    "event_sampling": _event_sampling,
    "delta_gzip": _delta_gzip,
    "frame_framing": _frame_framing,
    "rejected_inits": _rejected_inits,
}
