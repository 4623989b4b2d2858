"""The parts of a worker: which pool is whose, which listener is which, ids, starting and stopping."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.accesslog import Entry
from lb.certificates import client_contexts
from lb.errors import NoBackend
from lb.model import Backend, PoolSettings, Snapshot
from lb.service import Service, is_bound_to
from lb.settings import BackendSpec, LogSettings, PoolConfig, Route, Settings
from lb.state.registry import Registry
from lb.state.store import connect
from lb.state.threads import ThreadRuntime
from lb.wsgi import listener
from tests.support.backends import Backend as Served
from tests.support.backends import Peer, ok, refusing
from tests.test_decision import decision

HEAD = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POOL = PoolConfig(backends=(BackendSpec("http://127.0.0.1:1", id="a"),))


def nothing(environ: Any, start_response: Any) -> tuple[bytes, ...]:
    """No control side."""
    return ()


Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Make]:
    """Makes services with settings of the test's choice, and no store that could be reached."""
    made: list[Service] = []
    caplog.set_level(logging.CRITICAL, "lb")

    def service(**changed: Any) -> Service:
        settings: dict[str, Any] = {
            "redis_url": f"unix://{tmp_path}/nothing-here",
            "pools": {"default": POOL},
            "log": LogSettings(access=""),
        }
        whole = Settings(**settings | changed)
        made.append(Service(whole, ThreadRuntime(), None, nothing, client_contexts(whole.pools)))
        return made[-1]

    yield service
    for one in made:
        one.stop()


# Routes.


def test_without_routes_there_is_nothing_to_look_up(make: Make) -> None:
    assert make(pools={"web": POOL}).router.match("", "/").pool == "web"  # type: ignore[union-attr]
    assert make(pools={"a": POOL, "default": POOL}).router.match("", "/").pool == "default"  # type: ignore[union-attr]


def test_routes_choose(make: Make) -> None:
    service = make(pools={"a": POOL, "b": POOL}, routes=(Route("b", path="/x"), Route("a", host="h")))
    assert service.router.only is None
    assert service.router.match("h", "/x").pool == "a"  # type: ignore[union-attr]
    assert service.router.match("i", "/x").pool == "b"  # type: ignore[union-attr]
    assert service.router.match("i", "/") is None


def test_every_pool_has_its_forwarder(make: Make) -> None:
    service = make(pools={"a": POOL, "b": POOL})
    assert {name: forwarder.pool for name, forwarder in service.forwarders.items()} == {"a": "a", "b": "b"}


# Listeners.


def test_listeners_are_told_apart_by_their_sockets(make: Make, tmp_path: Path) -> None:
    with socket.socket() as data, socket.socket() as control:
        for sock in (data, control):
            sock.bind(("127.0.0.1", 0))
        name = control.getsockname()
        service = make(control_bind=f"127.0.0.1:{name[1]}")
        assert service.kinds_of([data.getsockname(), name]) == ["data", "control"]
        assert service.control_addresses == (name,)
        for sock, kind in ((data, "data"), (control, "control")):
            assert listener({"gunicorn.socket": sock}, service.control_addresses) == kind


@pytest.mark.parametrize(
    ("name", "bind", "same"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80", True),
        (("127.0.0.1", 80), "127.0.0.1:81", False),
        (("127.0.0.2", 80), "127.0.0.1:80", False),
        (("127.0.0.1", 80), "localhost:80", True),
        (("0.0.0.0", 80), "0.0.0.0:80", True),
        (("0.0.0.0", 80), "127.0.0.1:80", False),
        (("::1", 80, 0, 0), "[::1]:80", True),
        (("::", 80, 0, 0), "[::1]:80", False),
        (("127.0.0.1", 80), "unix:127.0.0.1:80", False),
        (("127.0.0.1", 80), "no-such-host.invalid:80", False),
        ("/run/s", "unix:/run/s", True),
        (b"/run/s", "unix:/run/s", True),
        ("/run/s", "unix:/run/t", False),
        ("/run/s", "127.0.0.1:80", False),
    ],
)
def test_is_bound_to(name: Any, bind: str, same: bool) -> None:
    assert is_bound_to(name, bind) is same


# Ids.


def test_ids_are_unique(make: Make) -> None:
    services = [make(), make()]
    ids = [service.next_id() for service in services for _ in range(1000)]
    assert len(set(ids)) == 2000
    assert all(found.isalnum() and len(found) == 20 for found in ids)


# Its life.


def entry() -> Entry:
    return Entry(1.0, "id", "c", "GET", "h", "/")


def test_it_serves_without_a_store_and_writes_its_log_at_the_end(make: Make, tmp_path: Path) -> None:
    with Served() as backend:
        pool = PoolConfig(backends=(BackendSpec(backend.url, id="a"),))
        service = make(pools={"default": pool}, log=LogSettings(access=str(tmp_path / "log")))
        service.start()
        assert service.fleet.degraded
        answer = service.forwarders["default"].forward(entry(), HEAD, None, 0.0)
        assert b"".join(answer) == b"ok"
        answer.close()
        assert (tmp_path / "log").read_text() == ""
        service.stop()
        (line,) = (tmp_path / "log").read_text().splitlines()
        assert json.loads(line)["backend"] == "a"
        service.stop()  # a second time does no harm


def test_backends_that_left_keep_no_connections(make: Make) -> None:
    def until_closed(peer: Peer) -> None:
        assert peer.read_request() is not None
        peer.send(ok())
        peer.wait_closed()

    with Served(until_closed) as backend, refusing() as other:
        service = make(pools={"default": PoolConfig(backends=(BackendSpec(backend.url, id="a"),))})
        service.start()
        answer = service.forwarders["default"].forward(entry(), HEAD, None, 0.0)
        assert b"".join(answer) == b"ok"
        answer.close()
        backends = {"b": Backend("b", other)}
        service._on_update(Snapshot("unknown", 1, PoolSettings(), backends))
        assert not backend.closed.acquire(timeout=0.05)
        service._on_update(Snapshot("default", 1, PoolSettings(), backends))
        assert backend.closed.acquire(timeout=20)


def test_decisions_that_cannot_be_written_are_held(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and is no reason to stop looking after the rest."""
    service = make()
    caplog.set_level(logging.WARNING, "lb")
    service.recorder.pending.append(decision("r"))
    registry = Registry(connect(service.settings.redis_url))
    for _ in range(2):
        service._on_beat(registry)
    assert [one.id for one in service.recorder.pending] == ["r"]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "decisions cannot be written, the last of them are held"
    ]


def test_a_pool_without_backends_says_so(make: Make) -> None:
    service = make(pools={"default": PoolConfig()})
    service.start()
    with pytest.raises(NoBackend):
        service.forwarders["default"].forward(entry(), b"", None, 0.0)
