from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
import redis
from redis.exceptions import NoScriptError

from lb.errors import ConfigError, StoreError, StoreUnavailable
from lb.state import store
from lb.state.scripts import Scripts
from lb.state.store import address, check_server, connect, is_embedded, runtime_dir, store_url, wait_for_store
from tests.state.pool import Pool, put
from tests.state.servers import KINDS, Server
from tests.support.run import eventually

ROOT = Path(__file__).parents[2]

# addresses


def test_the_runtime_directory_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_dir() == runtime_dir("") == Path("/run/user/7/lb")
    assert runtime_dir("/some/where") == Path("/some/where")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/var/tmp")
    monkeypatch.setattr(os, "getuid", lambda: 7)
    assert runtime_dir() == Path("/var/tmp/lb-7")


def test_a_configured_url_comes_first() -> None:
    assert store_url("redis://h", "/x") == "redis://h"
    assert store_url("", "/x y") == "unix:///x%20y/store.sock"
    assert store_url(None, Path("/x")) == "unix:///x/store.sock"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://host:6379/0"),
        (
            "rediss://user:secret@host/2?ssl_password=secret&db=3",
            "rediss://host/2?ssl_password=%2A%2A%2A&db=3",
        ),
        ("unix://user:secret@/run/x%20y.sock?password=secret", "/run/x y.sock"),
    ],
)
def test_messages_never_show_a_password(url: str, shown: str) -> None:
    assert address(url) == shown
    with connect(url, connect_timeout=0.01) as client, pytest.raises(StoreError) as caught:
        client.ping()
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value.__cause__)


def test_embedded_stores_are_known_by_their_socket() -> None:
    assert is_embedded(store_url(None, "/x"))
    assert not is_embedded("unix:///run/redis.sock")
    assert not is_embedded("redis://h/store.sock")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis+sentinel://h:1/name", "redis\\+sentinel:// is not supported yet"),
        ("redis+cluster://h:1", "redis\\+cluster:// is not supported yet"),
        ("http://u:secret@h", "'http://h' must start with redis://"),
        ("h:6379", "must start with redis://"),
        ("redis://h:port", "cannot be used: .*[Pp]ort"),
        ("redis://h?socket_timeout=x", "cannot be used"),
    ],
)
def test_unusable_urls(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"LB_REDIS_URL: .*{message}") as caught:
        connect(url)
    assert "secret" not in str(caught.value)


# the border


def test_errors_are_translated(tmp_path: Path) -> None:
    with connect(f"unix://{tmp_path}/none") as client:
        with pytest.raises(StoreUnavailable, match=f"the store at {tmp_path}/none is not available"):
            client.get("x")
        with pytest.raises(StoreUnavailable, match="not available"), client.pipeline() as pipe:
            pipe.get("x").get("y")
            pipe.execute()


def test_wrong_types_and_broken_scripts_are_errors_of_the_store(client: redis.Redis) -> None:
    client.set("x", "1")
    for wrong in (lambda: client.hget("x", "y"), lambda: client.eval("return redis.call('HGET','x','y')", 0)):
        with pytest.raises(StoreError, match="refused a command") as caught:
            wrong()
        assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(NoScriptError):
        client.evalsha("0" * 40, 0)


def test_a_store_that_does_not_answer_is_unavailable(own_server: Server) -> None:
    with connect(own_server.url, socket_timeout=0.05) as client:
        client.ping()
        own_server.send(signal.SIGSTOP)
        started = monotonic()
        with pytest.raises(StoreUnavailable, match="[Tt]imeout"):
            client.ping()
        assert monotonic() - started < 5
        own_server.send(signal.SIGCONT)
        eventually(client.ping, "the store to answer again")


def test_a_store_without_memory_is_unavailable(own_server: Server) -> None:
    client = own_server.client()
    pool = Pool(client)
    pool.commit([put("a")], algorithm="round-robin")
    client.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="OOM|memory"):
        pool.commit([put("b")])
    client.config_set("maxmemory", "0")
    assert pool.commit([put("b")]) == 2
    client.close()


def test_a_restarted_store_is_found_again(own_server: Server) -> None:
    with own_server.client() as client:
        scripts, pool = Scripts(client), Pool(client)
        pool.commit([put("a")])
        own_server.stop()
        with pytest.raises(StoreUnavailable):
            scripts.commit(pool.keys, 0, b"")
        own_server.start()
        assert scripts.commit(pool.keys, 0, b"") == 1


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but"), StoreUnavailable),
        (redis.ResponseError("BUSY Redis is busy running a script."), StoreUnavailable),
        (
            redis.ResponseError("Error running script (call to f_1): @user_script: 9: -OOM command"),
            StoreUnavailable,
        ),
        (redis.exceptions.BusyLoadingError("loading the dataset"), StoreUnavailable),
        (redis.exceptions.MasterDownError("link is down"), StoreUnavailable),
        (ConnectionResetError(104, "reset"), StoreUnavailable),
        (redis.ResponseError("unknown command 'BUSYNESS '"), StoreError),
        (redis.DataError("invalid input"), StoreError),
    ],
    ids=str,
)
def test_what_an_error_means(exc: Exception, kind: type[Exception]) -> None:
    assert type(store.translate(exc, "x")) is kind


# what is asked of a server


def test_a_good_server_passes(client: redis.Redis) -> None:
    check_server(client)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sample_configuration_is_understood(kind: str, tmp_path: Path) -> None:
    server = Server(kind, tmp_path, durable=True, config=ROOT / "redis" / "redis.conf")
    server.start()
    with server.client() as client:
        check_server(client)
        options = client.config_get("maxmemory*")
    server.stop()
    assert options["maxmemory-policy"] == "noeviction"


@pytest.fixture(params=KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(request.param, tmp_path, "--requirepass", "secret")
    server.start()
    yield server
    server.stop()


def test_a_server_that_refuses_us(guarded: Server) -> None:
    for url in (guarded.url, f"{guarded.url}?password=wrong-one"):
        with (
            connect(url) as client,
            pytest.raises(ConfigError, match="refuses us .*put user and password") as caught,
        ):
            check_server(client)
        assert "wrong-one" not in str(caught.value)
    with connect(f"{guarded.url}?password=secret") as client:
        check_server(client)
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+info", "+hget")
    with (
        connect(f"{guarded.url}?username=reader&password=pw") as client,
        pytest.raises(ConfigError, match="let the user run scripts"),
    ):
        check_server(client)


def test_a_replica_is_refused_with_the_name_of_its_primary(own_server: Server) -> None:
    with own_server.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ConfigError, match="is a replica of 127.0.0.1:1: name the primary"):
            check_server(client)
        with pytest.raises(StoreUnavailable):  # what a failover looks like from a running worker
            Scripts(client).hold("x", "me", 1)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"redis_version": "6.0.16"}, "is Redis 6.0.16: 6.2 or newer"),
        ({"redis_version": "7.2.4", "redis_mode": "cluster"}, "a node of a cluster"),
        ({"redis_version": "7.2.4", "redis_mode": "sentinel"}, "is a sentinel"),
    ],
)
def test_servers_that_will_not_do(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, info: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(client, "info", lambda: info)
    with pytest.raises(ConfigError, match=message):
        check_server(client)


# waiting


def test_waiting_for_a_server_that_comes_later(own_server: Server) -> None:
    own_server.stop()
    said: list[str] = []
    clients: list[redis.Redis] = []
    waiter = threading.Thread(
        target=lambda: clients.append(wait_for_store(own_server.url, monotonic() + 30, said.append, 0.01))
    )
    waiter.start()
    eventually(lambda: said, "a word about what is waited for")
    own_server.start()
    waiter.join(30)
    assert clients[0].ping()
    clients[0].close()
    assert f"waiting for the store at {own_server.socket} is not available" in said[0]


def test_an_embedded_store_is_waited_for_with_advice(tmp_path: Path) -> None:
    url, said = store_url(None, tmp_path), list[str]()
    advice = f"the embedded store at {tmp_path}/store.sock: start gunicorn, or set LB_REDIS_URL"
    with pytest.raises(StoreUnavailable, match=f"there is no {advice[4:]}"):
        wait_for_store(url, monotonic() + 0.1, said.append, 0.01)
    assert said == [f"waiting for {advice}"]


def test_waiting_ends_at_once_when_it_cannot_help(guarded: Server) -> None:
    started = monotonic()
    with pytest.raises(ConfigError, match="refuses us"):
        wait_for_store(guarded.url, monotonic() + 60, pytest.fail)
    assert monotonic() - started < 20
