"""Hostile messages and requests to a running gateway: no crash, no hang, no 500, and every answer is a named error.

    sana-gateway up out/repo &
    python benchmarks/gateway_fuzz.py http://127.0.0.1:8080 --messages 20000

hypothesis makes the messages of the WebSocket, and schemathesis the requests to everything in the OpenAPI document.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from sana_client.gateway import messages as m

RESULTS = Path(__file__).parent / "results" / "gateway_fuzz.json"
REALTIME = "/v1/realtime_video/generate"
PER_SOCKET = 100
ROUND = 100
ANSWERS = 10.0
KINDS = ["init", "event", *m.COMMANDS, "frame_batch", "", "é" * 50]
FIELDS = [*m.Init.__struct_fields__, "video", "uploadId", "width", "chunks", "data", "format"]
PROBE = {"type": "are you there"}
"""Refused in every state, with its type in the reason."""

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=30)
    | st.binary(max_size=60)
    | st.sampled_from([*KINDS, "x" * 3000, bytes(5000), b"\xff\xd8\xff\xe0" + bytes(80), -1, 2**53 + 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=6,
)
MAPS = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={"data": VALUES, "payload": VALUES, "kind": st.sampled_from(["prompt", "frame", "end", "x"])}
    | dict.fromkeys(("prompt", "event_id", "max_chunks", "fps", "condition_inputs", "commands", "size"), VALUES),
)
PACKED = MAPS.map(msgspec.msgpack.encode)
MESSAGES = (
    PACKED
    | MAPS.map(lambda found: msgspec.json.encode(found).decode())
    | st.builds(lambda data, end: data[:end], PACKED, st.integers(0, 200))
    | st.builds(lambda data, at: _flipped(data, at % (len(data) * 8)), PACKED, st.integers(0, 20000))
    | st.binary(max_size=300)
    | st.text(max_size=100)
)


def _flipped(data: bytes, bit: int) -> bytes:
    at, shift = divmod(bit, 8)
    return data[:at] + bytes([data[at] ^ 1 << shift]) + data[at + 1 :]


def attack(address: str, count: int, seen: Counter[str]) -> None:
    """Sockets with hostile messages until so many were sent; a failure is shrunk to the messages that matter."""

    @settings(
        max_examples=ROUND, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(st.lists(MESSAGES, min_size=PER_SOCKET // 2, max_size=PER_SOCKET))
    def on_one_socket(hostile: list[bytes | str]) -> None:
        asyncio.run(_on_one_socket(address, hostile, seen))

    while seen["sent"] < count:
        on_one_socket()


async def _on_one_socket(address: str, hostile: list[bytes | str], seen: Counter[str]) -> None:
    async with connect(address, max_size=None, compression=None) as socket:
        answers = asyncio.create_task(_answers(socket, seen))
        try:
            for message in hostile:
                await socket.send(message)
                seen["sent"] += 1
            await socket.send(msgspec.msgpack.encode(PROBE))
            async with asyncio.timeout(ANSWERS):
                await answers
        except ConnectionClosed as closed:
            # A complete run or a refused start ends a session; a defect would close with another code, or none.
            if closed.rcvd is None or closed.rcvd.code not in (1000, 1008):
                raise
            seen[f"closed with {closed.rcvd.code}"] += 1
        finally:
            answers.cancel()


async def _answers(socket: ClientConnection, seen: Counter[str]) -> None:
    """Read until the probe is answered."""
    while True:
        data = await socket.recv()
        found = msgspec.json.decode(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
        seen[f"answered {found['type']}"] += 1
        detail = found.get("detail", "")
        assert found["type"] != "error" or detail, f"an error without a reason: {found}"
        if PROBE["type"] in detail:
            return


def requests(base: str) -> int:
    """Every documented call with generated data; how many there were. Raises what schemathesis found."""
    # The document cannot say which bytes are a video, and which text is an SDP offer.
    options = ["--exclude-checks", "positive_data_acceptance", "--max-examples", "100", "--seed", "1"]
    tool = Path(sys.executable).with_name("schemathesis")
    command = [str(tool), "run", f"{base}/openapi.json", "--phases", "coverage,fuzzing", *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"(\d+) generated", ended.stdout)
    if ended.returncode or not found:
        sys.exit(ended.stdout + ended.stderr)
    return int(found[1])


def run(base: str, count: int) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    attack(base.replace("http", "ws") + REALTIME, count, seen)
    generated = requests(base)
    httpx.get(f"{base}/health").raise_for_status()
    return {"messages": dict(sorted(seen.items())), "http_requests": generated, "server_errors": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--messages", type=int, default=20000)
    parser.add_argument("--record", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = json.dumps(run(options.address.rstrip("/"), options.messages), indent=1)
    options.record.write_text(record + "\n")
    print(record)


if __name__ == "__main__":
    main()
