"""Running code in greenlets of the test's own thread, whose hub is not patched into anything."""

from __future__ import annotations

import socket
from _socket import socket as RawSocket
from collections.abc import Callable
from typing import TypeVar

import gevent

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds that a greenlet may take."""


def in_greenlet(function: Callable[[], T], seconds: float = PATIENCE) -> T:
    """What `function` returns, or raises, when it runs in a greenlet."""
    results: list[T] = []
    faults: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as exc:
            faults.append(exc)

    greenlet = gevent.spawn(body)
    greenlet.join(seconds)
    assert greenlet.dead, f"still running after {seconds:g} s"
    if faults:
        raise faults[0]
    return results[0]


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Let the loop turn until `condition` holds."""

    def wait() -> None:
        while not condition():
            gevent.sleep(0.002)

    try:
        in_greenlet(wait, seconds)
    except AssertionError:
        raise AssertionError(f"waited {seconds:g} s in vain for {what}") from None


def raw_pair(blocking: bool = False) -> tuple[RawSocket, socket.socket]:
    """Two ends of a connection: one as the program has its sockets, one for the test."""
    ours, theirs = socket.socketpair()
    raw = RawSocket(fileno=ours.detach())
    raw.setblocking(blocking)
    theirs.settimeout(PATIENCE)
    return raw, theirs
