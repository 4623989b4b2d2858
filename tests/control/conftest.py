"""The control application of a worker with a real store, called as a server would."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from lb.certificates import client_contexts
from lb.control import Control
from lb.service import Service
from lb.settings import BackendSpec, LogSettings, PoolConfig, Settings
from lb.state.decide import declare
from lb.state.embedded import start_or_join
from lb.state.registry import Registry
from lb.state.store import connect, store_url
from lb.state.threads import ThreadRuntime

POOLS = {
    "web": PoolConfig(
        "least-connections", (BackendSpec("http://a:1", 3, 7, "one"), BackendSpec("https://b:2"))
    )
}


class Told(NamedTuple):
    """One answer; the names of its fields in lower case."""

    status: int
    reason: str
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Asker:
    """Calls a control application; `settings` are changed by keyword."""

    def __init__(self, settings: Settings, service: Service | None = None) -> None:
        self.control = Control(settings)
        self.control.service = service

    def __call__(
        self,
        path: str,
        method: str = "GET",
        body: object = None,
        *,
        raw: bytes | None = None,
        kind: str = "application/json",
        **fields: Any,
    ) -> Told:
        """`body` is sent as JSON, `raw` as it is; `fields` are keys of the environ."""
        data = raw if raw is not None else b"" if body is None else msgspec.json.encode(body)
        environ = {
            "PATH_INFO": path,
            "REQUEST_METHOD": method,
            "wsgi.input": BytesIO(data),
            "wsgi.errors": sys.stderr,
            "HTTP_HOST": "127.0.0.1:8001",
            **({"CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(data))} if data or raw is not None else {}),
            **fields,
        }
        told: list[tuple[str, list[tuple[str, str]]]] = []
        out = b"".join(self.control(environ, lambda status, fields: told.append((status, fields))))
        ((line, pairs),) = told
        assert len({name.lower() for name, _ in pairs}) == len(pairs)
        status, _, reason = line.partition(" ")
        answer = Told(int(status), reason, {name.lower(): value for name, value in pairs}, out)
        if answer.status >= 400 and "status" in answer.fields.get("content-type", ""):
            assert answer.json["status"] == answer.status
        return answer


def service_of(settings: Settings) -> Service:
    """The parts of a worker, not started."""
    return Service(settings, ThreadRuntime(), None, Control(settings), client_contexts(settings.pools))


@pytest.fixture(scope="package")
def store_dir() -> Iterator[Path]:
    """The folder of an embedded store that runs; its path is short."""
    folder = Path(tempfile.mkdtemp(prefix="lb-t-"))
    store = start_or_join(folder)
    yield folder
    store.leave()
    shutil.rmtree(folder)


@pytest.fixture
def settings(store_dir: Path) -> Settings:
    return Settings(runtime_dir=str(store_dir), pools=POOLS, log=LogSettings(access=""))


@pytest.fixture
def registry(store_dir: Path) -> Iterator[Registry]:
    """The store, which has the configured pool and nothing else."""
    client = connect(store_url("", store_dir))
    client.flushdb()  # this one is ours alone
    registry = Registry(client)
    for name, pool in POOLS.items():
        registry.change(name, declare(pool))
    yield registry
    client.close()


@pytest.fixture
def service(settings: Settings, registry: Registry) -> Iterator[Service]:
    """A worker's parts that have joined the fleet."""
    made = service_of(settings)
    made.start()
    assert not made.fleet.degraded
    yield made
    made.stop()


@pytest.fixture
def ask(settings: Settings, service: Service) -> Asker:
    return Asker(settings, service)


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Asker]:
    """One whose store cannot be reached."""
    settings = Settings(redis_url=f"unix://{tmp_path}/nothing", pools=POOLS, log=LogSettings(access=""))
    made = service_of(settings)
    yield Asker(settings, made)
    made.stop()
