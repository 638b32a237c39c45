"""Videos on the gateway: uploads that belong to a caller, and samples that everybody may edit."""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.video.stream import VideoStream

from sana_client.errors import VideoError
from sana_client.gateway.access import Caller
from sana_client.gateway.machine import Video
from sana_client.gateway.messages import FileRef
from sana_client.gateway.refusals import InvalidRequest, NotFound, OverLimit
from sana_client.video import VideoReader

SIGNATURES = ((4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"OggS"))
"""Where the containers that are taken carry which bytes; a playlist could make the decoder open other files."""

HEAD_BYTES = 16
PROBE_FRAMES = 33
VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi"))


@dataclass(frozen=True)
class Media:
    """One video: where it is, what it is, and whose."""

    id: str
    name: str
    path: Path
    video: Video
    owner: str

    def card(self) -> dict[str, object]:
        """What a client learns of it; `uploadId` and `name` make a reference."""
        sizes = {"width": self.video.width, "height": self.video.height, "num_frames": self.video.frames}
        reference = {"uploadId": self.id, "name": self.name, "mimeType": "video/*", "size": self.path.stat().st_size}
        return reference | sizes


@dataclass
class MediaStore:
    """At most `most` uploads in `folder`, the oldest going first; samples are the videos in `samples`."""

    folder: Path
    samples: Path | None
    most: int
    most_pixels: int
    _uploads: OrderedDict[str, Media] = field(default_factory=OrderedDict)

    async def add(self, name: str, data: AsyncIterator[bytes], caller: Caller) -> Media:
        """Take an upload in; raises InvalidRequest for what is no video and OverLimit for one that is too large."""
        upload_id = secrets.token_urlsafe(12)
        path = self.folder / f"upload-{upload_id}"
        try:
            await _write(path, data, caller.upload_bytes)
            video = await asyncio.to_thread(inspect, path, self.most_pixels)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        media = Media(upload_id, Path(name).name[:100] or "upload", path, video, caller.name)
        self._uploads[upload_id] = media
        while len(self._uploads) > self.most:
            self.remove(next(iter(self._uploads)))
        return media

    def find(self, reference: FileRef, caller: Caller) -> Media:
        """The video behind a reference; raises NotFound unless it is a sample or the caller's own."""
        if reference.upload_id:
            media = self._uploads.get(reference.upload_id)
            if media is None or media.owner != caller.name:
                raise NotFound(f"there is no upload {reference.upload_id!r:.40} of yours: upload the video again")
            return media
        for path in self.sample_paths():
            if path.name == reference.name:
                return Media("", path.name, path, inspect(path, self.most_pixels), "")
        raise NotFound(f"there is no sample {reference.name!r:.80}: choose one of the listed ones, or upload a video")

    def sample_paths(self) -> list[Path]:
        """The samples' files, by name."""
        files = sorted(self.samples.iterdir()) if self.samples else []
        return [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]

    def remove(self, upload_id: str) -> None:
        """Forget an upload and its file; a session that is reading it goes on to its end."""
        self._uploads.pop(upload_id).path.unlink(missing_ok=True)


async def _write(path: Path, data: AsyncIterator[bytes], most: int) -> None:
    size = 0
    with path.open("xb") as file:
        async for part in data:
            size += len(part)
            if size > most:
                raise OverLimit(f"the upload is larger than the {most // 2**20} MB that this token allows")
            file.write(part)


def inspect(path: Path, most_pixels: int) -> Video:
    """Size and length of a video file, found by decoding its beginning; raises InvalidRequest for what is none."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not any(head[start : start + len(magic)] == magic for start, magic in SIGNATURES):
        raise InvalidRequest("the file is no video that can be taken: send MP4, MOV, MKV, WebM or AVI")
    try:
        return _decoded(path, most_pixels)
    except VideoError as error:
        raise InvalidRequest(str(error).replace(str(path), "the file")) from None


def _decoded(path: Path, most_pixels: int) -> Video:
    try:
        with av.open(str(path)) as container:
            video = container.streams.best("video")
            if not isinstance(video, VideoStream):
                raise VideoError("the file has no video stream")
            width, height = video.width, video.height
            if not 0 < width * height <= most_pixels:
                raise VideoError(f"frames of {width}x{height} are not taken: at most {most_pixels} pixels are")
            # Browsers record WebM without saying how long it is.
            frames = video.frames or sum(packet.size > 0 for packet in container.demux(video))
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"the file cannot be read as a video ({error.strerror})") from None
    reader = VideoReader(str(path))
    try:
        seen = sum(1 for _ in zip(reader.frames(16, 16), range(PROBE_FRAMES), strict=False))
    finally:
        reader.close()
    return Video(width, height, frames if seen == PROBE_FRAMES else seen)
