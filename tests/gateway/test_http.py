"""The HTTP side against the real model server: models, uploads, jobs, limits, and what is refused."""

import asyncio
import errno
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from gateways import SIZE, Gateway, client, gateway
from websockets.exceptions import InvalidStatus

from sana_build.server import TritonServer
from sana_client.errors import VideoError
from sana_client.gateway import jobs, media
from sana_client.gateway.openapi import DOCUMENT
from sana_client.writer import VideoWriter

pytestmark = pytest.mark.server

SECRETS = {"ann": "the-secret-of-ann-1", "bob": "the-secret-of-bob-1"}
LIMITS = {"ann": "upload_megabytes = 1\nrequests_per_minute = 300", "bob": "requests_per_minute = 3"}


@pytest.fixture
async def http(gate: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gate.http, timeout=20) as found:
        yield found


@asynccontextmanager
async def guarded(folder: Path, triton: str) -> AsyncIterator[tuple[Gateway, dict[str, httpx.AsyncClient]]]:
    """A gateway with tokens, and a client per caller."""
    tokens = folder / "tokens.toml"
    tokens.write_text("\n".join(f'[{name}]\ntoken = "{SECRETS[name]}"\n{LIMITS[name]}' for name in SECRETS))
    async with gateway(folder, triton, tokens=tokens) as gate:
        headers = {name: {"authorization": f"Bearer {secret}"} for name, secret in SECRETS.items()}
        clients = {name: httpx.AsyncClient(base_url=gate.http, headers=headers[name]) for name in SECRETS}
        yield gate, clients
        for each in clients.values():
            await each.aclose()


def reason(answer: httpx.Response) -> str:
    return answer.json()["error"]["message"]


async def finished(http: httpx.AsyncClient, job: str) -> dict:
    """Poll until a job has ended."""
    async with asyncio.timeout(20):
        while (card := (await http.get(f"/v1/videos/{job}")).json())["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.05)
    return card


async def test_health_models_and_metrics(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"status": "ok"}
    card = (await http.get("/v1/models")).json()["data"][0]
    assert (card["id"], card["width"], card["streams"]) == ("sana_streaming", SIZE, 2)
    assert (await http.get(f"/v1/models/{card['id']}")).json() == card
    unknown = await http.get("/v1/models/other")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert "sana_streams_capacity 2.0" in (await http.get("/metrics")).text


async def test_the_page_is_served_with_headers_that_protect_it(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert "<title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert (await http.get("/../pyproject.toml")).status_code == 404


async def test_a_job_edits_an_uploaded_video(http: httpx.AsyncClient, clip: Path) -> None:
    with clip.open("rb") as file:
        answer = await http.post("/v1/videos", data={"prompt": "invert"}, files={"input_reference": file})
    card = answer.json()
    assert card["status"] in ("queued", "in_progress")
    assert (card["object"], card["size"], card["quality"]) == ("video", f"{SIZE}x{SIZE}", "standard")
    early = await http.get(f"/v1/videos/{card['id']}/content")
    assert early.status_code == 404
    assert "in-progress" in reason(early)
    card = await finished(http, card["id"])
    assert (card["status"], card["progress"], card["seconds"]) == ("completed", 100, "5.28")
    video = (await http.get(card["url"])).content
    with av.open(io.BytesIO(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 132
        assert container.streams.audio
    assert [job["id"] for job in (await http.get("/v1/videos")).json()["data"]] == [card["id"]]
    assert (await http.delete(f"/v1/videos/{card['id']}")).json()["status"] == "deleted"
    gone = await http.get(f"/v1/videos/{card['id']}")
    assert (gone.status_code, reason(gone)) == (404, "Video not found")


async def test_a_job_takes_samples_and_uploads_by_reference(http: httpx.AsyncClient, clip: Path) -> None:
    assert {"name": clip.name} in (await http.get("/v1/media")).json()["data"]
    upload = (await http.post("/v1/uploads?name=mine.mp4", content=clip.read_bytes())).json()
    assert (upload["name"], upload["width"], upload["num_frames"]) == ("mine.mp4", 1280, 132)
    references = [
        {"input_reference": clip.name},
        {"input_reference": upload["uploadId"]},
        {"video": {"name": clip.name}},
        {"extra_body": {"input_reference": clip.name, "prompt": "other"}},
    ]
    for reference in references:
        job = (await http.post("/v1/videos", json={"prompt": "keep", **reference})).json()
        assert (await finished(http, job["id"]))["status"] == "completed"
    listed = (await http.get("/v1/videos?limit=2&order=asc")).json()
    assert (len(listed["data"]), listed["has_more"]) == (2, True)
    rest = (await http.get(f"/v1/videos?order=asc&after={listed['data'][-1]['id']}")).json()
    assert (len(rest["data"]), rest["has_more"]) == (2, False)


REFUSED_JOBS = {
    "no json": (b"{", "no JSON"),
    "no object": (b"[]", "no JSON object"),
    "no prompt": (b"{}", "prompt"),
    "empty prompt": (b'{"prompt": " "}', "prompt must have"),
    "no video": (b'{"prompt": "x"}', "no video"),
    "server path": (b'{"prompt": "x", "input_reference": "/etc/passwd"}', "no sample"),
    "parent path": (b'{"prompt": "x", "input_reference": "../README.md"}', "no sample"),
    "address": (b'{"prompt": "x", "reference_url": "http://127.0.0.1/"}', "not allowed"),
    "output path": (b'{"prompt": "x", "output_path": "/tmp"}', "not allowed"),
    "size": (b'{"prompt": "x", "size": "1x1"}', "not served"),
    "seed": (b'{"prompt": "x", "seed": -1}', ">= 0"),
}


@pytest.mark.parametrize("name", REFUSED_JOBS)
async def test_jobs_that_cannot_be_are_refused_at_once(http: httpx.AsyncClient, name: str) -> None:
    body, words = REFUSED_JOBS[name]
    answer = await http.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404)
    assert words in reason(answer)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x00\x00\x00\x18ftypmp42" + bytes(200),
    ],
)
async def test_uploads_that_are_no_video_leave_nothing(gate: Gateway, http: httpx.AsyncClient, data: bytes) -> None:
    answer = await http.post("/v1/uploads", content=data)
    assert answer.status_code == 400
    assert str(gate.hub.settings.folder) not in answer.text
    assert not list(gate.hub.settings.folder.glob("upload-*"))


async def test_a_full_disk_is_told_and_leaves_nothing(
    gate: Gateway, http: httpx.AsyncClient, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(path: Path, data: object, most: int) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(media, "_write", full)
    answer = await http.post("/v1/uploads", content=clip.read_bytes())
    assert answer.status_code == 507
    assert not list(gate.hub.settings.folder.glob("upload-*"))


async def test_a_job_whose_result_cannot_be_written_fails_and_leaves_nothing(
    gate: Gateway, http: httpx.AsyncClient, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(VideoWriter):
        def write(self, *_: object) -> None:
            raise VideoError(f"{self._path} cannot be written (No space left on device): check the disk")

    monkeypatch.setattr(jobs, "VideoWriter", Full)
    job = (await http.post("/v1/videos", json={"prompt": "keep", "input_reference": clip.name})).json()
    card = await finished(http, job["id"])
    assert card["status"] == "failed"
    assert card["error"]["message"] == "the result cannot be written (No space left on device): check the disk"
    assert (await http.get(f"/v1/videos/{job['id']}/content")).status_code == 404
    assert not list(gate.hub.settings.folder.glob("job-*"))


async def test_tokens_separate_callers_and_limit_them(model_server: TritonServer, tmp_path: Path, clip: Path) -> None:
    async with guarded(tmp_path, model_server.grpc_url) as (gate, clients):
        async with httpx.AsyncClient(base_url=gate.http) as nobody:
            assert (await nobody.get("/health")).status_code == 200
            for path in ("/v1/models", "/metrics", "/v1/videos"):
                assert (await nobody.get(path)).status_code == 401
        with pytest.raises(InvalidStatus) as denied:
            async with client(gate):
                pass
        assert denied.value.response.status_code == 401
        small = _small_video(tmp_path / "small.mp4")
        upload = (await clients["ann"].post("/v1/uploads", content=small)).json()
        assert upload["num_frames"] == 40
        job = {"prompt": "invert", "input_reference": upload["uploadId"]}
        assert (await clients["bob"].post("/v1/videos", json=job)).status_code == 404
        assert (await clients["ann"].post("/v1/videos", json=job)).status_code == 200
        large = await clients["ann"].post("/v1/uploads", content=bytes(2**20 + 1))
        assert large.status_code == 429
        assert "more than" in reason([await clients["bob"].get("/v1/models") for _ in range(3)][-1])
        async with client(gate, additional_headers={"authorization": f"Bearer {SECRETS['ann']}"}):
            pass


def _small_video(path: Path) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for value in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value * 5, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


async def test_pages_of_other_sites_are_kept_out(gate: Gateway, http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models", headers={"origin": "https://evil.example"})).status_code == 401
    assert (await http.get("/v1/models", headers={"host": "rebound.example"})).status_code == 401
    with pytest.raises(InvalidStatus):
        async with client(gate, origin="https://evil.example"):
            pass


async def test_the_document_describes_every_route(http: httpx.AsyncClient) -> None:
    assert (await http.get("/openapi.json")).json() == DOCUMENT
    for path, operations in DOCUMENT["paths"].items():
        for method in operations.keys() & {"get", "delete"}:
            answer = await http.request(method, path.format(model="x", video="x"))
            assert str(answer.status_code) in operations[method]["responses"]
    wrong = await http.put("/v1/videos")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST, HEAD")


async def test_without_a_model_server_everything_says_so(tmp_path: Path) -> None:
    async with gateway(tmp_path, "127.0.0.1:1") as gate, httpx.AsyncClient(base_url=gate.http) as http:
        health = await http.get("/health")
        assert health.status_code == 503
        assert "no Triton server answers" in health.json()["reason"]
        assert (await http.get("/v1/models")).status_code == 503
