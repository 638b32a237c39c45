"""The OpenAPI document of the HTTP side."""

from typing import Any

Schema = dict[str, Any]


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Schema, description: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _list(item: Schema) -> Schema:
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": item}}, ("object", "data"))


def _errors(*codes: int) -> Schema:
    """The refusals that a call can answer; a token is asked for everywhere."""
    return {str(code): _json(_ref("Error"), ERRORS[code]) for code in (*codes, 401, 429)}


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _body(**kinds: Schema) -> Schema:
    names = {"json": "application/json", "multipart": "multipart/form-data"}
    return {"required": True, "content": {names[kind]: {"schema": schema} for kind, schema in kinds.items()}}


ERRORS = {
    400: "The request cannot be used; the message says why.",
    401: "The token is missing or unknown.",
    404: "There is no such thing, or it belongs to somebody else.",
    429: "Over a limit of the token.",
    503: "The model is not ready, or every slot is taken.",
    507: "The disk is full.",
}
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
NULLABLE_TEXT, NULLABLE_WHOLE = {"type": ["string", "null"]}, {"type": ["integer", "null"]}
PROMPT = {"type": "string", "minLength": 1, "maxLength": 2000}
SEED = {"type": "integer", "minimum": 0, "maximum": 2**53, "default": 42}
FILE = {"type": "string", "format": "binary"}
CARD = ("uploadId", "name", "mimeType", "size", "width", "height", "num_frames")

SCHEMAS: Schema = {
    "Error": _object({"error": _object({"message": TEXT, "type": TEXT}, ("message", "type"))}, ("error",)),
    "Model": _object({"id": TEXT, "object": {"const": "model"}, "owned_by": TEXT}, ("id", "object")),
    "FileRef": _object({"uploadId": TEXT, "name": TEXT}),
    "Upload": _object({name: TEXT if index < 3 else WHOLE for index, name in enumerate(CARD)}, CARD),
    "Video": _object(
        {
            "id": TEXT,
            "object": {"const": "video"},
            "model": TEXT,
            "status": {"enum": ["queued", "in_progress", "completed", "failed", "deleted"]},
            "progress": {"type": "integer", "minimum": 0, "maximum": 100},
            "created_at": WHOLE,
            "completed_at": NULLABLE_WHOLE,
            "size": TEXT,
            "seconds": TEXT,
            "url": NULLABLE_TEXT,
            "error": {"type": ["object", "null"]},
        },
        ("id", "object", "status", "progress"),
    ),
}
JOB = {"prompt": PROMPT, "seed": SEED}
JOB_JSON = _object(JOB | {"input_reference": TEXT, "video": _ref("FileRef")}, ("prompt",))
JOB_FORM = _object(JOB | {"input_reference": FILE}, ("prompt", "input_reference"))
VIDEO, UPLOAD = _json(_ref("Video"), "The job."), _json(_ref("Upload"), "A reference to the video.")
LISTED = [
    _query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
    _query("order", {"enum": ["asc", "desc"]}),
    _query("after", TEXT),
]

PATHS: Schema = {
    "/health": {
        "get": {
            "summary": "Whether the model can be used",
            "security": [],
            "responses": {
                "200": _json(_object({"status": TEXT}), "It can."),
                "503": _json(_object({"status": TEXT, "reason": TEXT}), "It cannot, and why."),
            },
        }
    },
    "/v1/models": {
        "get": {
            "summary": "The served model",
            "responses": {"200": _json(_list(_ref("Model")), "A list of one."), **_errors(503)},
        }
    },
    "/v1/models/{model}": {
        "get": {
            "summary": "The served model by its name",
            "parameters": [_path("model")],
            "responses": {"200": _json(_ref("Model"), "The model."), **_errors(404, 503)},
        }
    },
    "/v1/realtime_video/webrtc": {
        "post": {
            "summary": "Open a live session over WebRTC",
            "requestBody": _body(json=_object({"sdp": TEXT, "init": {"type": "object"}}, ("sdp",))),
            "responses": {
                "200": _json(_object({"type": TEXT, "sdp": TEXT, "session_id": TEXT}), "The answer."),
                **_errors(400, 404, 503),
            },
        }
    },
    "/v1/media": {
        "get": {
            "summary": "Samples that anybody may edit",
            "responses": {"200": _json(_list(_object({"name": TEXT})), "Their names."), **_errors()},
        }
    },
    "/v1/uploads": {
        "post": {
            "summary": "Upload a video",
            "requestBody": _body(multipart=_object({"file": FILE}, ("file",))),
            "responses": {"201": UPLOAD, **_errors(400, 507)},
        }
    },
    "/v1/videos": {
        "post": {
            "summary": "Edit a whole video in the background",
            "requestBody": _body(json=JOB_JSON, multipart=JOB_FORM),
            "responses": {"200": VIDEO, **_errors(400, 404, 503, 507)},
        },
        "get": {
            "summary": "Your jobs",
            "parameters": LISTED,
            "responses": {"200": _json(_list(_ref("Video")), "The jobs."), **_errors(400)},
        },
    },
    "/v1/videos/{video}": {
        "parameters": [_path("video")],
        "get": {"summary": "One job", "responses": {"200": VIDEO, **_errors(404)}},
        "delete": {"summary": "End and forget a job", "responses": {"200": VIDEO, **_errors(404)}},
    },
    "/v1/videos/{video}/content": {
        "parameters": [_path("video")],
        "get": {
            "summary": "The edited video",
            "responses": {
                "200": {"description": "An MP4 file.", "content": {"video/mp4": {"schema": FILE}}},
                **_errors(404),
            },
        },
    },
}

DOCUMENT: Schema = {
    "openapi": "3.1.0",
    "info": {"title": "sana-gateway", "version": "1", "description": "Live and background video editing."},
    "security": [{"bearer": []}, {}],
    "paths": PATHS,
    "components": {"schemas": SCHEMAS, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
}
