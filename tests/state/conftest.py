"""Every test that takes `server`, `client` or what is made of them runs on Valkey and on Redis."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from lb.state.registry import Registry
from lb.state.scripts import Scripts
from tests.state.pool import Pool
from tests.state.servers import KINDS, Server


@pytest.fixture(scope="session", params=KINDS)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        server = Server(request.param, Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def client(shared_server: Server) -> Iterator[redis.Redis]:
    """A client of an empty server, which other tests use before and after."""
    with shared_server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def store_url(shared_server: Server, client: redis.Redis) -> str:
    return shared_server.url


@pytest.fixture
def scripts(client: redis.Redis) -> Scripts:
    return Scripts(client)


@pytest.fixture
def registry(client: redis.Redis) -> Registry:
    return Registry(client)


@pytest.fixture
def pool(client: redis.Redis) -> Pool:
    return Pool(client)


@pytest.fixture(params=KINDS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may stop, kill and start again."""
    server = Server(request.param, tmp_path)
    server.start()
    yield server
    server.stop()
