"""Bytes on their way out: in one piece per turn, whatever the socket takes at once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import gevent
import pytest

from lb.http2_outbox import Outbox
from lb.proxy.conn import Conn, Reactor
from tests.support.green import in_greenlet, raw_pair, until


class Case:
    """An outbox, the other end of its connection, and what it told."""

    def __init__(self, timeout: float = 20) -> None:
        raw, self.other = raw_pair()
        self.reactor = Reactor(gevent.get_hub())
        self.conn = Conn(self.reactor, raw)
        self.told: list[str] = []
        self.outbox = Outbox(
            self.conn, timeout, lambda: self.told.append("sent"), lambda: self.told.append("failed")
        )

    def close(self) -> None:
        self.reactor.close()
        self.other.close()


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    made.close()


def test_a_turn_is_one_piece(case: Case) -> None:
    def push() -> None:
        case.outbox.push(b"one ")
        case.outbox.push(b"two")
        assert case.outbox.waiting == 7
        case.other.setblocking(False)
        with pytest.raises(BlockingIOError):
            case.other.recv(10)

    in_greenlet(push)
    until(lambda: case.told, "all to be sent")
    assert case.other.recv(100) == b"one two"
    assert (case.told, case.outbox.waiting, case.outbox.sending) == (["sent"], 0, False)


def test_more_than_the_socket_takes(case: Case) -> None:
    parts = [os.urandom(700_000) for _ in range(3)]
    got = bytearray()

    def read() -> None:
        case.other.setblocking(False)
        while len(got) < 2_100_000:
            try:
                got.extend(case.other.recv(100_000))
            except BlockingIOError:
                gevent.sleep(0.001)

    in_greenlet(lambda: case.outbox.push(parts[0]))
    until(lambda: case.outbox.sending, "the socket to be full")
    for part in parts[1:]:
        case.outbox.push(part)
    assert case.told == []
    in_greenlet(read)
    until(lambda: case.told, "all to be sent")
    assert bytes(got) == b"".join(parts)
    assert case.outbox.waiting == 0


@pytest.mark.parametrize("how", ["closed", "stalled"])
def test_who_does_not_read(how: str) -> None:
    case = Case(timeout=0.2)
    try:
        if how == "closed":
            case.other.close()
        in_greenlet(lambda: case.outbox.push(bytes(2_000_000)))
        until(lambda: case.told, "the end")
        assert case.told == ["failed"]
    finally:
        case.close()


def test_nothing_goes_into_a_closed_connection(case: Case) -> None:
    case.outbox.push(b"x")
    case.conn.close()
    case.outbox.push(b"y")
    case.outbox.clear()
    in_greenlet(lambda: gevent.sleep(0.01))
    assert (case.told, case.outbox.waiting) == ([], 0)
