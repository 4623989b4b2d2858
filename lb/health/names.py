"""Host names to addresses, without one slow name server holding up all probes.

Look-ups run in a few threads of their own; who asks for a name that is being looked up joins in. A name
is asked for again after `TTL`; when the name server does not answer, the last known addresses serve on:
its outage is not the backends' fault.
"""

from __future__ import annotations

import _socket
import ipaddress
import time
from typing import Any, NamedTuple, cast

from gevent.threadpool import ThreadPool
from gevent.timeout import Timeout

#: How long an answer is used before the name is asked for again, seconds.
TTL = 5.0
#: How long the last answer is remembered in case the next fails, seconds.
KEEP = 3600.0
#: More than this many names: the ones not asked for lately go.
MOST = 20_000
#: Look-ups at a time.
THREADS = 8

Address = tuple[int, Any]


class NameLookupError(Exception):
    """The name has no address, or none could be learned in time; the message says which."""


class _Known(NamedTuple):
    addresses: tuple[Address, ...]
    asked: float


def literal(host: str, port: int) -> Address | None:
    """Return family and socket address of `host` if it is an IP address, else None."""
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return None
    if parsed.version == 4:
        return (_socket.AF_INET, (host, port))
    scope = getattr(parsed, "scope_id", None)
    number = 0
    if scope:
        try:
            number = _socket.if_nametoindex(scope)
        except OSError:
            return None
    return (_socket.AF_INET6, (host.split("%", maxsplit=1)[0], port, 0, number))


def _ask(host: str, port: int) -> list[Any]:
    # The one from C: gevent's would start an event loop in this thread to wait for another one.
    return _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)


class Names:
    """Look-ups with memory; one per process."""

    def __init__(self) -> None:
        self._pool: ThreadPool | None = None
        self._known: dict[tuple[str, int], _Known] = {}
        self._running: dict[tuple[str, int], Any] = {}

    def addresses(self, host: str, port: int, patience: float) -> tuple[Address, ...]:
        """Return the addresses of `host`, waiting at most `patience` seconds if it must be asked for.

        Raises NameLookupError.
        """
        address = literal(host, port)
        if address is not None:
            return (address,)
        name = (host, port)
        known = self._known.get(name)
        now = time.monotonic()
        if known and now - known.asked < TTL:
            return known.addresses
        try:
            with Timeout(patience, TimeoutError("the name server does not answer")):
                rows = self._join(name).get()
        except _socket.gaierror as exc:
            if known and exc.errno == _socket.EAI_AGAIN and now - known.asked < KEEP:
                return known.addresses
            raise NameLookupError(f"{host}: {exc.strerror}") from None
        except UnicodeError:
            raise NameLookupError(f"{host} is no host name") from None
        except (TimeoutError, OSError) as exc:
            if known and now - known.asked < KEEP:
                return known.addresses
            raise NameLookupError(f"{host}: {exc}") from None
        found = tuple(dict.fromkeys((cast("int", row[0]), row[4]) for row in rows))
        if not found:
            raise NameLookupError(f"{host} has no address")
        self._remember(name, found, now)
        return found

    def _join(self, name: tuple[str, int]) -> Any:
        """The look-up of `name` that is running, or a new one."""
        running = self._running.get(name)
        if running is None or running.ready():
            if self._pool is None:
                self._pool = ThreadPool(THREADS)
            running = self._running[name] = self._pool.spawn(_ask, *name)
            running.rawlink(lambda done: self._forget(name, done))
        return running

    def _forget(self, name: tuple[str, int], done: Any) -> None:
        if self._running.get(name) is done:
            del self._running[name]

    def _remember(self, name: tuple[str, int], found: tuple[Address, ...], now: float) -> None:
        if len(self._known) >= MOST:
            self._known = {key: one for key, one in self._known.items() if now - one.asked < KEEP / 60}
        self._known[name] = _Known(found, now)
