from __future__ import annotations

import socket
import threading
from typing import Any

import gevent
import pytest

from lb.health import names
from lb.health.names import NameLookupError, Names, literal

ROW = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))
FOUND = ((socket.AF_INET, ("192.0.2.1", 80)),)


class Server:
    """In place of the system's look-up: counts, and answers, fails or hangs as told."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.release = threading.Event()
        self.release.set()

    def __call__(self, _host: str, _port: int) -> list[Any]:
        self.asked += 1
        self.release.wait(10)
        if self.failure:
            raise self.failure
        return [ROW, ROW]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(names, "_ask", made)
    return made


def expire(known: Names) -> None:
    known._known = {key: one._replace(asked=one.asked - names.TTL) for key, one in known._known.items()}


def test_addresses_need_no_name_server(server: Server) -> None:
    assert Names().addresses("127.0.0.1", 80, 0.0) == ((socket.AF_INET, ("127.0.0.1", 80)),)
    assert Names().addresses("::1", 80, 0.0) == ((socket.AF_INET6, ("::1", 80, 0, 0)),)
    assert literal("localhost", 80) is None
    assert server.asked == 0


def test_a_name_is_asked_for_once_per_ttl(server: Server) -> None:
    known = Names()
    assert known.addresses("h", 80, 5) == FOUND
    assert known.addresses("h", 80, 5) == FOUND
    assert server.asked == 1
    expire(known)
    assert known.addresses("h", 80, 5) == FOUND
    assert server.asked == 2


def test_many_who_ask_at_once_share_one_question(server: Server) -> None:
    known = Names()
    server.release.clear()
    waiting = [gevent.spawn(known.addresses, "h", 80, 5) for _ in range(100)]
    gevent.sleep(0.02)
    server.release.set()
    gevent.joinall(waiting, raise_error=True)
    assert server.asked == 1


def test_a_server_that_hangs_fails_the_name_in_time(server: Server) -> None:
    server.release.clear()
    with pytest.raises(NameLookupError, match="does not answer"):
        Names().addresses("h", 80, 0.05)
    server.release.set()


def test_a_server_that_is_away_leaves_the_last_answer_standing(server: Server) -> None:
    known = Names()
    known.addresses("h", 80, 5)
    expire(known)
    server.failure = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    assert known.addresses("h", 80, 5) == FOUND
    server.failure = None
    server.release.clear()
    assert known.addresses("h", 80, 0.05) == FOUND
    server.release.set()


def test_a_name_that_is_gone_is_gone(server: Server) -> None:
    known = Names()
    known.addresses("h", 80, 5)
    expire(known)
    server.failure = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(NameLookupError, match="not known"):
        known.addresses("h", 80, 5)


def test_what_is_no_host_name(server: Server) -> None:
    server.failure = UnicodeError("label too long")
    with pytest.raises(NameLookupError, match="no host name"):
        Names().addresses("x" * 300, 80, 5)


@pytest.mark.usefixtures("server")
def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MOST", 10)
    known = Names()
    for number in range(10):
        known.addresses(f"h{number}", 80, 5)
    known._known = {key: one._replace(asked=one.asked - names.KEEP) for key, one in known._known.items()}
    known.addresses("new", 80, 5)
    assert set(known._known) == {("new", 80)}
