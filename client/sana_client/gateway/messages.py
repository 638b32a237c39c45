"""What a client sends, decoded and checked: init, events, and session commands (realtime protocol 1.2, 1.3, 4.3)."""

from typing import Annotated, Any, Literal

import msgspec

from sana_client.gateway.refusals import InvalidRequest

MAX_NUMBER = 2**53
"""The largest whole number that a browser's JSON keeps exactly."""

Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
EventId = Annotated[int, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class FileRef(msgspec.Struct, rename={"upload_id": "uploadId", "mime_type": "mimeType"}):
    """A file on the gateway: an upload by its id, or a sample by its name."""

    upload_id: str = ""
    name: str = ""
    mime_type: str = ""
    size: int = 0


class Conditions(msgspec.Struct):
    """Further inputs of an init; `video` makes a session edit a file instead of frames that the client sends."""

    video: FileRef | None = None


class Init(msgspec.Struct, tag_field="type", tag="init", kw_only=True):
    """Opens a session. Keys that are not listed are ignored, as the protocol wants.

    With `commands` the session starts idle and is driven by commands; otherwise it starts at once. `wait` stands in
    line when all slots are taken. `lossless` makes the sender wait where live frames would be dropped. `layout` is
    "edited", or "pair" for the source to the left of the edit.
    """

    prompt: str
    first_frame: Any = None
    condition_inputs: Conditions | None = None
    size: str | None = None
    num_frames: Positive | None = None
    max_chunks: Positive | None = None
    fps: Annotated[int, msgspec.Meta(ge=1, le=240)] | None = None
    seed: Whole = 42
    num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    guidance_scale_2: float | None = None
    negative_prompt: str | None = None
    realtime_output_format: Literal["raw", "webp", "jpeg"] | None = None
    output_compression: int | None = None
    realtime_preview_max_width: int | None = None
    realtime_output_pacing: bool = False
    enable_frame_interpolation: bool = False
    enable_upscaling: bool = False
    enhance_prompt: bool = False
    framing: Literal["documented", "current"] | None = None
    layout: Literal["edited", "pair"] = "edited"
    commands: bool = False
    wait: bool = False
    lossless: bool = False


class Event(msgspec.Struct, tag_field="type", tag="event"):
    """Something that happens during a session; `event_id` comes back with the first frames that show it."""

    kind: str
    payload: Any = None
    event_id: EventId | None = None


class Command(msgspec.Struct):
    """One command of a session, with its data still unchecked."""

    type: str
    data: dict[str, Any] = {}


class SetPrompt(msgspec.Struct):
    prompt: str
    event_id: EventId | None = None


class SetMode(msgspec.Struct):
    mode: Literal["live", "file"]


class SetVideo(msgspec.Struct):
    video: FileRef


class SetSeed(msgspec.Struct):
    seed: Whole


class SetAnchorInterval(msgspec.Struct):
    chunks: Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]


class Start(msgspec.Struct):
    wait: bool = False


class Nothing(msgspec.Struct):
    """A command without data."""


class Frame(msgspec.Struct):
    """One source frame, or several raw ones: an image file, or rgb24 bytes with their size; numbered by the client.

    `captured_ms` is the client's own clock and comes back with the edited frame.
    """

    data: bytes
    format: Literal["image", "rgb24"] = "image"
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)] | None = None
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)] | None = None
    number: Whole | None = None
    captured_ms: float | None = None


COMMANDS: dict[str, type[msgspec.Struct]] = {
    "set_prompt": SetPrompt,
    "set_mode": SetMode,
    "set_video": SetVideo,
    "set_seed": SetSeed,
    "set_anchor_interval": SetAnchorInterval,
    "start": Start,
    "pause": Nothing,
    "resume": Nothing,
    "reset": Nothing,
    "frame": Frame,
    "finish": Nothing,
}

BROKEN = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError)
"""What decoding hostile bytes can raise."""


def decode_map(message: bytes | str) -> dict[str, Any]:
    """A MessagePack map, or a JSON object for text; raises InvalidRequest."""
    try:
        found = msgspec.json.decode(message) if isinstance(message, str) else msgspec.msgpack.decode(message)
    except BROKEN as error:
        raise InvalidRequest(f"the message cannot be decoded ({_line(error)})") from None
    if isinstance(found, dict):
        return found
    raise InvalidRequest("the message is not a map")


def read_init(found: dict[str, Any]) -> Init:
    """An init with the usual coercions ("24" is 24, 24.5 is refused); raises InvalidRequest naming the field."""
    if "type" not in found:
        raise InvalidRequest('the map has no type: an init has "init"')
    return _convert(found, Init)


def read_event(found: dict[str, Any]) -> Event:
    """An event, its payload unchecked; raises InvalidRequest."""
    return _convert(found, Event)


def is_command(found: dict[str, Any]) -> bool:
    """Whether a map names one of the session commands."""
    name = found.get("type")
    return isinstance(name, str) and name in COMMANDS


def read_command(found: dict[str, Any]) -> tuple[str, msgspec.Struct]:
    """Name and checked data of a command; raises InvalidRequest."""
    command = _convert(found, Command)
    return command.type, _convert(command.data, COMMANDS[command.type])


def read_frame(payload: Any) -> Frame:
    """The payload of a frame event; raises InvalidRequest."""
    return _convert(payload, Frame)


def _convert(found: Any, kind: type) -> Any:
    try:
        return msgspec.convert(found, kind, strict=False)
    except BROKEN as error:
        raise InvalidRequest(_line(error)) from None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def error_message(content: str, detail: str = "", **more: Any) -> dict[str, Any]:
    """The documented error map; `detail` says what was wrong and what to do."""
    return {"type": "error", "content": content} | ({"detail": detail} if detail else {}) | more
