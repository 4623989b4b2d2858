from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from lb.model import Backend, PoolSettings, Snapshot
from lb.state import changes, decide
from lb.state.changes import Listener, Message, apply, decode, encode, listen
from lb.state.decide import Change
from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from tests.state.servers import Server
from tests.support.run import eventually

A, B = Backend("a", "http://a:80"), Backend("b", "http://b:80", weight=3)
BEFORE = Snapshot("p", 6, PoolSettings(), {"a": A})


@pytest.fixture(autouse=True)
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listeners notice soon that they are stopped."""
    monkeypatch.setattr(changes, "POLL", 0.02)


# messages


def test_a_message_says_what_changed_and_no_more() -> None:
    assert json.loads(encode(6, Change(delete=("a",)))) == {"from": 6, "v": 7, "del": ["a"]}
    full = json.loads(encode(6, Change((B,), ("a",), PoolSettings("least-connections"))))
    assert full["put"][0]["id"] == "b"
    assert full["settings"]["algorithm"] == "least-connections"


def test_a_message_is_read_as_it_was_written() -> None:
    change = Change((A, B), ("c",), PoolSettings())
    assert decode(encode(6, change)) == Message(6, 7, (A, B), ("c",), PoolSettings())
    with pytest.raises(ValueError, match="JSON"):
        decode(b"nonsense")


def test_messages_of_newer_releases_are_read_as_far_as_they_are_known() -> None:
    assert decode(b'{"from":1,"v":2,"put":[],"more":{"x":1}}') == Message(1, 2)


def test_the_next_change_is_applied_to_a_copy() -> None:
    found = apply(BEFORE, encode(6, Change((B,), ("a",), PoolSettings("least-connections"))))
    assert found == Snapshot("p", 7, PoolSettings("least-connections"), {"b": B})
    assert BEFORE.backends == {"a": A}
    assert apply(BEFORE, Message(6, 7)) == Snapshot("p", 7, PoolSettings(), {"a": A})


def test_old_news_change_nothing_and_gaps_are_told() -> None:
    assert apply(BEFORE, encode(4, Change(delete=("a",)))) is BEFORE
    assert apply(BEFORE, encode(5, Change(delete=("a",)))) is BEFORE
    assert apply(BEFORE, encode(7, Change(delete=("a",)))) is None


# the listener


class Heard:
    """What a listener told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.gaps = 0
        self.raises: list[Exception] = []

    def message(self, pool: str, data: bytes) -> None:
        if self.raises:
            raise self.raises.pop()
        self.messages.append((pool, data))

    def gap(self) -> None:
        self.gaps += 1


@contextmanager
def listening(connect: Callable[[], redis.Redis], *pools: str) -> Iterator[tuple[Listener, Heard]]:
    """A listener in a thread, connected already; stopped at the end."""
    heard = Heard()
    listener = Listener(connect, pools, heard.message, heard.gap)
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        eventually(lambda: heard.gaps, "the first connection")
        yield listener, heard
    finally:
        listener.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_a_worker_is_called_up_on_a_channel_of_its_own(shared_server: Server, client: redis.Redis) -> None:
    heard, called = Heard(), list[tuple[str, bytes]]()
    listener = Listener(
        shared_server.client, ["p"], heard.message, heard.gap, "w", lambda *call: called.append(call)
    )
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        eventually(lambda: heard.gaps, "the first connection")
        assert client.publish(PoolKeys("p").calls("other"), 1) == 0
        assert client.publish(PoolKeys("p").calls("w"), 2) == 1
        eventually(lambda: called == [("p", b"2")], "the call")
        assert heard.messages == []
    finally:
        listener.stop()
        thread.join(30)


def test_changes_arrive(shared_server: Server, registry: Registry) -> None:
    with listening(shared_server.client, "p", "q") as (_, heard):
        assert heard.gaps == 1
        registry.change("p", decide.add(A))
        registry.change("other", decide.add(A))
        registry.change("q", decide.add(B))
        eventually(lambda: len(heard.messages) == 2, "two messages")
        snapshots = [apply(Snapshot(pool, 0, PoolSettings(), {}), data) for pool, data in heard.messages]
        assert snapshots == [registry.load("p"), registry.load("q")]
        assert heard.gaps == 1


def test_it_connects_anew_when_told_to(shared_server: Server, registry: Registry) -> None:
    with listening(shared_server.client, "p") as (listener, heard):
        listener.reconnect()
        eventually(lambda: heard.gaps == 2, "the second connection")
        registry.change("p", decide.add(A))
        eventually(lambda: heard.messages, "a message on it")
        assert listener.connected == 2


def test_a_lost_connection_is_a_gap_and_then_goes_on(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    def connect() -> redis.Redis:
        attempts.append(1)
        return own_server.client()

    with caplog.at_level(logging.WARNING, "lb"), listening(connect, "p") as (_, heard):
        own_server.stop()
        eventually(lambda: len(attempts) > 3, "attempts to connect")
        own_server.start()
        eventually(lambda: heard.gaps == 2, "the second connection")
        with own_server.client() as client:
            Registry(client).change("p", decide.add(A))
        eventually(lambda: heard.messages, "a message")
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not at every attempt


def test_a_connection_killed_by_the_server_is_a_gap(shared_server: Server, client: redis.Redis) -> None:
    with listening(shared_server.client, "p") as (_, heard):
        assert client.client_kill_filter(_type="pubsub") == 1
        eventually(lambda: heard.gaps == 2, "the second connection")
        client.publish(PoolKeys("p").changes, "x")
        eventually(lambda: heard.messages == [("p", b"x")], "a message")


def test_a_server_that_falls_silent_is_noticed(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(changes, "QUIET", 0.2)
    attempts: list[int] = []

    def connect() -> redis.Redis:
        attempts.append(1)
        return own_server.client()

    with own_server.client() as client, listening(connect, "p") as (listener, heard):

        def pings() -> int:
            stats = client.info("commandstats")
            return int(stats.get("cmdstat_ping", {"calls": 0})["calls"])

        # Quiet but there: pings are answered, the connection stays.
        before = pings()
        eventually(lambda: pings() > before + 2, "pings")
        assert (listener.connected, heard.gaps, len(attempts)) == (1, 1, 1)
        own_server.send(signal.SIGSTOP)
        eventually(lambda: len(attempts) > 1, "an attempt to connect anew")
        own_server.send(signal.SIGCONT)
        eventually(lambda: heard.gaps > 1, "the second connection")
    assert "silent for" in caplog.text


def test_a_callback_that_fails_costs_a_gap_and_not_the_listener(
    shared_server: Server, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    with listening(shared_server.client, "p") as (_, heard):
        heard.raises.append(RuntimeError("what a callback should not do"))
        client.publish(PoolKeys("p").changes, "lost")
        eventually(lambda: heard.gaps == 2, "the second connection")
        client.publish(PoolKeys("p").changes, "x")
        eventually(lambda: heard.messages == [("p", b"x")], "a message")
    assert "what a callback should not do" in caplog.text


def test_stopping_while_the_store_is_away(own_server: Server) -> None:
    own_server.stop()
    attempts: list[int] = []

    def connect() -> redis.Redis:
        attempts.append(1)
        return own_server.client()

    heard = Heard()
    listener = Listener(connect, ["p"], heard.message, heard.gap)
    thread = threading.Thread(target=listener.run)
    thread.start()
    eventually(lambda: len(attempts) > 1, "attempts to connect")
    listener.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert heard.gaps == 0


def test_no_pools_nothing_to_listen_to(own_server: Server) -> None:
    heard = Heard()
    Listener(own_server.client, [], heard.message, heard.gap).run()
    assert heard.gaps == 0


def test_listen_runs_by_itself(shared_server: Server, client: redis.Redis) -> None:
    heard = Heard()
    listener = listen(shared_server.client, ["p"], heard.message, heard.gap)
    eventually(lambda: heard.gaps, "the first connection")
    client.publish(PoolKeys("p").changes, "x")
    eventually(lambda: heard.messages == [("p", b"x")], "a message")
    listener.stop()
    eventually(lambda: not client.pubsub_numsub(PoolKeys("p").changes)[0][1], "its end")
