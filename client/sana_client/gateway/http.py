"""The HTTP side: models, uploads, jobs, health and metrics (realtime protocol 2 and 3)."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from sana_client.errors import UsageError
from sana_client.gateway import messages as m
from sana_client.gateway.access import Caller
from sana_client.gateway.jobs import Job, Jobs
from sana_client.gateway.media import Media, MediaStore
from sana_client.gateway.openapi import DOCUMENT
from sana_client.gateway.refusals import InvalidRequest, NotFound
from sana_client.gateway.web import BoundedRequest, caller, failure, hub
from sana_client.protocol import StreamInfo

PART_BYTES = 2**20
MOST_LISTED = 100
DEFAULT_LISTED = 20
MERGED = ("extra_body", "extra_json", "extra_params")
ORDERS = {"asc": False, "desc": True}


class VideoRequest(msgspec.Struct):
    """What a job can be asked for; keys that are not listed are ignored."""

    prompt: str
    input_reference: str | None = None
    video: m.FileRef | None = None
    seed: m.Whole = 42
    size: str | None = None
    reference_url: str | None = None
    output_path: str | None = None


async def health(request: Request) -> Response:
    """503 until the model can be used, with the reason."""
    found = hub(request)
    ready = found.info is not None and not found.draining
    trouble = "stopping" if found.draining else found.trouble
    return JSONResponse(
        {"status": "ok"} if ready else {"status": "unavailable", "reason": trouble}, 200 if ready else 503
    )


async def liveness(request: Request) -> Response:
    """200 while the gateway itself runs."""
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """The metrics in Prometheus' text format."""
    found = hub(request)
    found.measure()
    return Response(generate_latest(found.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def document(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(DOCUMENT)


async def models(request: BoundedRequest) -> Response:
    """The one served model."""
    return JSONResponse({"object": "list", "data": [_model_card(hub(request).model())]})


async def model(request: BoundedRequest) -> Response:
    """The served model by its name."""
    info, name = hub(request).model(), request.path_params["model"]
    if name != info.model:
        message = f"The model {name[:80]!r} does not exist"
        return failure(404, message, type="invalid_request_error", param="model", code="model_not_found")
    return JSONResponse(_model_card(info))


def _model_card(info: StreamInfo) -> dict[str, Any]:
    geometry = {"width": info.width, "height": info.height, "first_frames": info.first_frames}
    return {
        "id": info.model,
        "object": "model",
        "created": 0,
        "owned_by": "sana-build",
        "root": info.model,
        "parent": None,
        "task_type": "V2V",
        "supported_task_types": ["V2V"],
        "pipeline_name": "sana_streaming",
        "streams": info.streams,
        "steady_frames": info.steady_frames,
        **geometry,
    }


async def media(request: BoundedRequest) -> Response:
    """The samples that anybody may edit."""
    names = [{"name": path.name} for path in hub(request).media.sample_paths()]
    return JSONResponse({"object": "list", "data": names})


async def upload(request: BoundedRequest) -> Response:
    """Take a video in, as the body or as the multipart part `file`, and answer its reference."""
    found = await _uploaded(request, "file") if _is_multipart(request) else await _body_upload(request)
    return JSONResponse(found.card(), 201)


async def _body_upload(request: BoundedRequest) -> Media:
    name = request.query_params.get("name", "upload")
    return await hub(request).media.add(name, request.stream(), caller(request))


def _is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("multipart/form-data")


async def _uploaded(request: BoundedRequest, part: str) -> Media:
    async with request.form(max_files=1, max_fields=100) as form:
        file = form.get(part)
        if not isinstance(file, UploadFile):
            raise InvalidRequest(f"the request has no file in its part {part!r}")
        return await hub(request).media.add(file.filename or "upload", _parts(file), caller(request))


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while part := await file.read(PART_BYTES):
        yield part


async def create_video(request: BoundedRequest) -> Response:
    """Start a job, from JSON that names a video or from multipart that brings one."""
    hub(request).model()
    fields, media = await (_from_multipart(request) if _is_multipart(request) else _from_json(request))
    _check_job(fields, hub(request).model(), hub(request).settings.prompt_characters)
    if media is None:
        media = await _referenced(request, fields)
    job = _jobs(request).add(media, fields.prompt.strip(), fields.seed, caller(request))
    return JSONResponse(job.card())


async def _from_json(request: BoundedRequest) -> tuple[VideoRequest, Media | None]:
    return _read(await request.object()), None


async def _from_multipart(request: BoundedRequest) -> tuple[VideoRequest, Media | None]:
    form = await request.form(max_files=1, max_fields=100)
    try:
        found: dict[str, Any] = {name: value for name, value in form.items() if isinstance(value, str)}
        for name in MERGED:
            if name in found:
                found[name] = m.decode_map(found[name])
        fields, file = _read(found), form.get("input_reference")
        if not isinstance(file, UploadFile):
            return fields, None
        return fields, await hub(request).media.add(file.filename or "upload", _parts(file), caller(request))
    finally:
        await form.close()


def _read(found: Mapping[str, Any]) -> VideoRequest:
    extra = [found[name] for name in MERGED if isinstance(found.get(name), dict)]
    merged: dict[str, Any] = {}
    for values in (*extra, found):
        merged |= values
    try:
        return msgspec.convert(merged, VideoRequest, strict=False)
    except m.BROKEN as error:
        raise InvalidRequest(str(error)[:200]) from None


def _check_job(fields: VideoRequest, info: StreamInfo, most: int) -> None:
    if not fields.prompt.strip() or len(fields.prompt) > most:
        raise InvalidRequest(f"the prompt must have 1 to {most} characters")
    if fields.size not in (None, f"{info.width}x{info.height}"):
        raise InvalidRequest(
            f"size {fields.size!r:.40} is not served: leave it out, or ask for {info.width}x{info.height}"
        )
    for name in ("reference_url", "output_path"):
        if getattr(fields, name):
            raise InvalidRequest(f"{name} is not allowed here: upload the video, and fetch the result from /content")


async def _referenced(request: BoundedRequest, fields: VideoRequest) -> Media:
    if not fields.video and not fields.input_reference:
        raise InvalidRequest("there is no video: send input_reference, an upload's id or a sample's name")
    name = fields.input_reference or ""
    choices = [fields.video] if fields.video else [m.FileRef(upload_id=name), m.FileRef(name=name)]
    return await asyncio.to_thread(_first_found, hub(request).media, choices, caller(request))


def _first_found(store: MediaStore, references: Sequence[m.FileRef], who: Caller) -> Media:
    *others, last = references
    for reference in others:
        with suppress(NotFound):
            return store.find(reference, who)
    return store.find(last, who)


async def webrtc(request: BoundedRequest) -> Response:
    """The SDP answer to an offer."""
    offer = await request.object()
    if not isinstance(offer.get("sdp"), str) or not isinstance(offer.get("init", {}), dict):
        raise InvalidRequest("an offer is an object with the text sdp, and perhaps an init")
    try:
        from sana_client.gateway.webrtc import answer
    except ImportError as error:
        raise UsageError(f"this gateway has no WebRTC ({error.name} is missing): use the WebSocket") from None
    return JSONResponse(await answer(offer, hub(request), caller(request)))


async def list_videos(request: BoundedRequest) -> Response:
    """The caller's jobs, newest first unless asked otherwise."""
    query = request.query_params
    order = query.get("order", "desc")
    limit = query.get("limit", str(DEFAULT_LISTED))
    if order not in ORDERS or not limit.isdecimal() or not 1 <= int(limit[:9]) <= MOST_LISTED:
        raise InvalidRequest(f"order is asc or desc, and limit is 1 to {MOST_LISTED}")
    jobs = sorted(_jobs(request).of(caller(request)), key=lambda job: job.created, reverse=ORDERS[order])
    if after := query.get("after"):
        ids = [job.id for job in jobs]
        jobs = jobs[ids.index(after) + 1 :] if after in ids else []
    shown = jobs[: int(limit)]
    return JSONResponse({"object": "list", "data": [job.card() for job in shown], "has_more": len(jobs) > len(shown)})


async def show_video(request: BoundedRequest) -> Response:
    """One job."""
    return JSONResponse(_job(request).card())


async def delete_video(request: BoundedRequest) -> Response:
    """Forget a job and its result."""
    job = _job(request)
    _jobs(request).remove(job)
    return JSONResponse(job.card() | {"deleted": True})


async def video_content(request: BoundedRequest) -> Response:
    """The result of a completed job, an MP4 file."""
    job = _job(request)
    if request.query_params.get("variant", "video") != "video":
        raise NotFound("the only variant of a result is video")
    if job.status == "failed":
        raise NotFound(f"Generation failed: {job.error}")
    if job.status != "completed":
        raise NotFound("Generation is still in-progress")
    return FileResponse(job.path, media_type="video/mp4", filename=f"{job.id}.mp4")


def _job(request: BoundedRequest) -> Job:
    return _jobs(request).find(request.path_params["video"], caller(request))


def _jobs(request: Request) -> Jobs:
    found: Jobs = request.app.state.jobs
    return found
