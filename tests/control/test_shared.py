"""With and without the store."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from lb.settings import LogSettings, Settings
from tests.control.conftest import POOLS, Asker, service_of
from tests.state.servers import Server
from tests.support.run import eventually

LIST, ONE, ALGORITHM = "/v1/pools/web/backends", "/v1/pools/web/backends/one", "/v1/pools/web/algorithm"
WRITES = (
    (LIST, "POST", {"url": "http://127.0.0.1:1"}),
    (ONE, "PATCH", {"weight": 1}),
    (ONE, "DELETE", None),
    (ALGORITHM, "PUT", {"algorithm": "random"}),
)


def test_reads_go_on_without_the_store(lone: Asker) -> None:
    told = lone("/v1/pools")
    assert told.status == 200
    pool = told.json["pools"]["web"]
    assert (pool["exact"], pool["algorithm"], pool["trial"]) == (False, "least-connections", [])
    assert [backend["in_flight"] for backend in pool["backends"]] == [None, None]
    assert lone("/v1/pools/web").json == pool
    assert lone(LIST).json["exact"] is False
    assert lone(ONE).json == pool["backends"][1]
    assert lone(ALGORITHM).json["exact"] is False


def test_what_may_be_in_the_store_is_not_said_to_be_missing(lone: Asker) -> None:
    told = lone("/v1/pools/theirs")
    assert (told.status, told.fields["retry-after"]) == (503, "1")


@pytest.mark.parametrize(("path", "method", "body"), WRITES)
def test_writes_do_not(lone: Asker, path: str, method: str, body: object) -> None:
    told = lone(path, method, body)
    assert (told.status, told.fields["retry-after"]) == (503, "1")
    assert "not available" in told.json["detail"]


def test_a_store_that_hangs_keeps_nobody_for_long(tmp_path: Path) -> None:
    server = Server("valkey", tmp_path)
    server.start()
    settings = Settings(redis_url=server.url, pools=POOLS, log=LogSettings(access=""))
    service = service_of(settings)
    service.start()
    ask = Asker(settings, service)
    try:
        assert ask("/v1/pools/web").json["exact"] is True
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert ask("/v1/pools/web").json["exact"] is False
        told = ask(ONE, "PATCH", {"weight": 1})
        assert told.status == 503
        assert time.monotonic() - began < 3
        server.process.send_signal(signal.SIGCONT)
        eventually(lambda: ask("/v1/pools/web").json["exact"], "the store to be in use again")
        assert ask(ONE, "PATCH", {"weight": 5}).json["weight"] == 5
    finally:
        assert server.process is not None
        server.process.send_signal(signal.SIGCONT)
        service.stop()
        server.stop()
