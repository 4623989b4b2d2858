"""Notices of changes: one message per commit, and the loop that receives them.

A message says from which version it leads to which, and what changed: a worker whose snapshot is at the first
applies it, any other reads the pool anew. Messages may be lost; whoever claims or beats sees the version.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import msgspec
import redis

from lb.errors import LbError
from lb.model import Backend, PoolSettings, Snapshot
from lb.state.decide import Change, applied
from lb.state.keys import PoolKeys

_LOG = logging.getLogger("lb")

POLL = 0.5
"""Seconds within which `Listener.stop` is noticed."""

QUIET = 10.0
"""Seconds of silence after which the connection is tried with a ping; twice that, and it is dead."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts to connect, growing from the first to the longest."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change of a pool, as published: `from` version to `v`."""

    before: int = msgspec.field(name="from")
    version: int = msgspec.field(name="v")
    put: tuple[Backend, ...] = ()
    delete: tuple[str, ...] = msgspec.field(name="del", default=())
    settings: PoolSettings | None = None


_DECODER = msgspec.json.Decoder(Message)


def encode(before: int, change: Change) -> bytes:
    """The message that tells of `change` on top of version `before`."""
    return msgspec.json.encode(Message(before, before + 1, change.put, change.delete, change.settings))


def decode(data: bytes | str) -> Message:
    """Read a message. Raises ValueError (msgspec.DecodeError) for what is none."""
    return _DECODER.decode(data)


def apply(snapshot: Snapshot, message: Message | bytes | str) -> Snapshot | None:
    """Return the snapshot after `message`; the same one if it is old news; None when it must be read anew."""
    if not isinstance(message, Message):
        message = decode(message)
    if message.version <= snapshot.version:
        return snapshot
    if message.before != snapshot.version:
        return None
    return applied(snapshot, Change(message.put, message.delete, message.settings), message.version)


class Listener:
    """Receives the messages of `pools`, in a thread or greenlet that calls `run`.

    `connect` makes a client. `on_message(pool, message)` is called for each message as it came,
    `on_call(pool, message)` for each that calls `worker` up from the queue (see `redis/queue.lua`),
    `on_gap()` after each time the connection was made: whatever was published before is lost, so read anew.
    What they raise is logged, and counts as a lost connection.
    """

    def __init__(
        self,
        connect: Callable[[], redis.Redis],
        pools: Iterable[str],
        on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None],
        worker: str = "",
        on_call: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._connect = connect
        self._pools: dict[bytes, tuple[Callable[[str, bytes], None], str]] = {}
        for pool in pools:
            keys = PoolKeys(pool)
            self._pools[keys.changes.encode()] = (on_message, pool)
            if on_call is not None:
                self._pools[keys.calls(worker).encode()] = (on_call, pool)
        self._on_gap = on_gap
        self._stop = threading.Event()
        self._again = threading.Event()
        #: How often the connection was made.
        self.connected = 0

    def stop(self) -> None:
        """Let `run` end, within `POLL` seconds. May be called from anywhere."""
        self._stop.set()

    def reconnect(self) -> None:
        """Connect anew, within `POLL` seconds: the store's address may lead elsewhere by now. As `stop`."""
        self._again.set()

    def run(self) -> None:
        """Listen until stopped; reconnect as often as it takes."""
        pause, said = FIRST_PAUSE, -1
        while self._pools and not self._stop.is_set():
            before = self.connected
            try:
                self._listen()
            except Exception as exc:  # noqa: BLE001 - logged, and the loop goes on
                if self._stop.is_set():
                    return
                expected = isinstance(exc, (redis.RedisError, OSError, LbError))
                if not expected:
                    _LOG.exception("listening for changes failed; connecting again")
                elif said != self.connected:  # once for each time that the connection is lost
                    _LOG.warning("listening for changes: %s; connecting again", exc)
                said = self.connected
            pause = FIRST_PAUSE if self.connected > before else min(2 * pause, LONGEST_PAUSE)
            self._stop.wait(pause)

    def _listen(self) -> None:
        self._again.clear()
        client = self._connect()
        try:
            pubsub: Any = client.pubsub()  # type: ignore[no-untyped-call]
            pubsub.subscribe(*self._pools)
            waiting = len(self._pools)
            heard = monotonic()
            while not (self._stop.is_set() or self._again.is_set()):
                message = pubsub.get_message(timeout=POLL)
                if message is None:
                    self._check_silence(pubsub, monotonic() - heard)
                    continue
                heard = monotonic()
                if message["type"] == "message":
                    take, pool = self._pools[message["channel"]]
                    take(pool, message["data"])
                elif message["type"] == "subscribe":
                    # With the last confirmation nothing is missed any more. One more after that means that
                    # the connection was made anew beneath us.
                    waiting -= 1
                    if waiting <= 0:
                        self._on_gap()
                        self.connected += 1
        finally:
            client.close()

    @staticmethod
    def _check_silence(pubsub: Any, silence: float) -> None:
        if silence > 2 * QUIET:
            raise redis.TimeoutError(f"silent for {silence:.0f} s")
        if silence > QUIET:
            pubsub.ping()


def listen(
    connect: Callable[[], redis.Redis],
    pools: Iterable[str],
    on_message: Callable[[str, bytes], None],
    on_gap: Callable[[], None],
) -> Listener:
    """Start a `Listener` in a daemon thread (a greenlet where threads are patched) and return it."""
    listener = Listener(connect, pools, on_message, on_gap)
    threading.Thread(target=listener.run, daemon=True, name="lb-changes").start()
    return listener
