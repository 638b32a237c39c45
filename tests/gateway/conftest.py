"""The model server and the gateway that the tests of this folder share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from gateways import Gateway, gateway

from fakes.tiny_engines import write_fake_repository
from sana_build.server import Ports, TritonServer

STREAMS = 2


@pytest.fixture(scope="session")
def fake_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose engines invert every pixel, or keep it when the prompt says keep."""
    repository = tmp_path_factory.mktemp("gateway") / "repository"
    write_fake_repository(repository, streams=STREAMS)
    return repository


@pytest.fixture(scope="session")
def model_server(fake_repository: Path) -> Iterator[TritonServer]:
    with TritonServer(fake_repository, Ports.free(), fake_repository.parent / "server.log") as running:
        yield running


@pytest.fixture
async def gate(model_server: TritonServer, tmp_path: Path, clip: Path) -> AsyncIterator[Gateway]:
    """A gateway in this process; after the test every slot has to be free again soon."""
    async with gateway(tmp_path, model_server.grpc_url, media=clip.parent) as running:
        yield running
        async with asyncio.timeout(5):
            while running.hub.admission.active or running.hub.sessions:
                await asyncio.sleep(0.05)
