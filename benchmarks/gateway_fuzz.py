"""Hostile messages to a running gateway: no crash, no hang, no 500, and every answer is a named error.

python benchmarks/gateway_fuzz.py http://127.0.0.1:8080 --messages 20000
"""

import argparse
import asyncio
import random
import string
import sys
from collections import Counter
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from sana_client.gateway import messages as m
from sana_client.gateway.openapi import DOCUMENT

PER_SOCKET = 200
ANSWERS = 10.0
KINDS = ["init", "event", *m.COMMANDS, "frame_batch", "", "é" * 50]
FIELDS = [
    *m.Init.__struct_fields__,
    "type",
    "data",
    "kind",
    "payload",
    "event_id",
    "video",
    "uploadId",
    "width",
    "chunks",
]
PROBE = {"type": "are you there"}
"""Refused in every state, with its type in the reason."""


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A value of any kind, seldom a sensible one."""
    simple = [
        lambda: None,
        lambda: rng.choice([True, False]),
        lambda: rng.choice([0, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), rng.randint(-99, 99)]),
        lambda: rng.choice([0.5, float("nan"), float("inf"), -1e308]),
        lambda: "".join(rng.choices(string.printable + "é\u0000\U0001f600", k=rng.choice([0, 1, 9, 3000]))),
        lambda: rng.randbytes(rng.choice([0, 1, 64, 5000])),
        lambda: rng.choice(KINDS),
        lambda: b"\xff\xd8\xff\xe0" + rng.randbytes(80),
    ]
    if depth > 3 or rng.random() < 0.7:
        return rng.choice(simple)()
    if rng.random() < 0.5:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice(FIELDS): anything(rng, depth + 1) for _ in range(rng.randint(0, 6))}


def message(rng: random.Random) -> bytes | str:
    """One message: bytes at random, a map with wrong values, or a good one that was cut or flipped."""
    way = rng.random()
    if way < 0.15:
        return rng.randbytes(rng.randint(0, 300))
    found = {"type": rng.choice(KINDS), "data": anything(rng), "kind": rng.choice(["prompt", "frame", "end", "x"])}
    found |= {rng.choice(FIELDS): anything(rng) for _ in range(rng.randint(0, 5))}
    if way < 0.3:
        return msgspec.json.encode(found).decode()[: rng.choice([None, 5, 30])]
    data = bytearray(msgspec.msgpack.encode(found))
    if way < 0.5:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


async def attack(address: str, seed: int, count: int, seen: Counter[str]) -> None:
    """One socket after another, each asked at its end whether it still answers."""
    rng = random.Random(seed)
    for _ in range(0, count, PER_SOCKET):
        async with connect(address, max_size=None, compression=None) as socket:
            reader = asyncio.create_task(_read(socket, seen))
            try:
                for _ in range(PER_SOCKET):
                    await socket.send(message(rng))
                    seen["sent"] += 1
                await socket.send(msgspec.msgpack.encode(PROBE))
                async with asyncio.timeout(ANSWERS):
                    await reader
            except ConnectionClosed:
                seen["closed by the gateway"] += 1
            finally:
                reader.cancel()


async def _read(socket: Any, seen: Counter[str]) -> None:
    async for data in socket:
        found = msgspec.json.decode(data) if isinstance(data, str) else msgspec.msgpack.decode(data)
        seen[found["type"]] += 1
        detail = found.get("detail", "")
        if found["type"] == "error" and not detail:
            sys.exit(f"an error without a reason: {found}")
        if PROBE["type"] in detail:
            return


async def requests(base: str, count: int, seen: Counter[str]) -> None:
    """Every documented route with bodies, headers and queries that make no sense."""
    rng = random.Random(1)
    routes = [
        (path, method)
        for path, operations in DOCUMENT["paths"].items()
        for method in operations.keys() - {"parameters"}
    ]
    kinds = ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "é".encode()]
    async with httpx.AsyncClient(base_url=base, timeout=ANSWERS) as http:
        for _ in range(count):
            path, method = rng.choice(routes)
            body = rng.choice(
                [
                    rng.randbytes(200),
                    msgspec.json.encode(anything(rng)),
                    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx',
                ]
            )
            query = {
                rng.choice(["limit", "order", "after", "variant", "name"]): rng.choice(
                    ["-1", "²", "asc", "x" * 500, "\x00"]
                )
            }
            answer = await http.request(
                method,
                path.format(model=rng.choice(["x", "%00", "..%2f"]), video=rng.choice(["x", "%ff"])),
                params=query,
                content=body if method == "post" else None,
                headers={b"content-type": kind if isinstance(kind := rng.choice(kinds), bytes) else kind.encode()},
            )
            seen[f"http {answer.status_code}"] += 1
            if answer.status_code == 500:
                sys.exit(f"500 from {method} {path}: {answer.text[:300]}")


async def run(base: str, count: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    address = base.replace("http", "ws").rstrip("/") + "/v1/realtime_video/generate"
    workers = 4
    await asyncio.gather(*(attack(address, seed, count // workers, seen) for seed in range(workers)))
    await requests(base, count // 10, seen)
    async with httpx.AsyncClient(base_url=base) as http:
        (await http.get("/health")).raise_for_status()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("--messages", type=int, default=20000)
    options = parser.parse_args()
    for name, count in sorted(asyncio.run(run(options.address, options.messages)).items()):
        print(f"{count:8} {name}")


if __name__ == "__main__":
    main()
