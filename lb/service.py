"""Everything one worker process needs to serve requests, put together from its configuration."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from lb.accesslog import AccessLog
from lb.model import Snapshot
from lb.proxy.conn import Reactor
from lb.proxy.forward import Forwarder
from lb.routing import Router
from lb.settings import Settings
from lb.state.fleet import Fleet, Runtime
from lb.state.store import store_url

DEFAULT_POOL = "default"


class Service:
    """The parts of one worker. `reactor` None means threads.

    `control` answers what comes in on the control listener, whose addresses are `control_addresses`.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        reactor: Reactor | None,
        control: Callable[..., Iterable[bytes]],
    ) -> None:
        self.settings = settings
        self.control = control
        self.control_addresses: tuple[Any, ...] = ()
        self.draining = False
        #: Bytes: the largest body of a request; 0: any.
        self.body_limit = settings.limits.body
        self.log = AccessLog(settings.log.access)
        worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        url = store_url(settings.redis_url, settings.runtime_dir)
        self.fleet = Fleet(url, settings.pools, worker, runtime, self._on_update)
        self.forwarders = {
            name: Forwarder(name, config, self.fleet.claims_of(name), reactor, self.log)
            for name, config in settings.pools.items()
        }
        # Without routes everything goes to one pool; lb.config sees to it that it is clear which.
        only = DEFAULT_POOL if DEFAULT_POOL in settings.pools else next(iter(settings.pools))
        self.router = Router(settings.routes, only)
        self._prefix = secrets.token_hex(6)
        self._count = count()

    def start(self) -> None:
        """Join the fleet."""
        self.fleet.start()

    def stop(self) -> None:
        """Leave the fleet, close what is open, write the log's rest."""
        self.fleet.stop()
        for forwarder in self.forwarders.values():
            forwarder.close()
        self.log.finish()

    def kinds_of(self, names: list[Any]) -> list[str]:
        """Which kind each listener is, `data` or `control`, given as `getsockname` names it."""
        bind = self.settings.control_bind
        kinds = ["control" if is_bound_to(name, bind) else "data" for name in names]
        self.control_addresses = tuple(
            name for name, kind in zip(names, kinds, strict=True) if kind == "control"
        )
        return kinds

    def next_id(self) -> str:
        """A request id, unique over all workers."""
        return f"{self._prefix}{next(self._count):08x}"

    def _on_update(self, snapshot: Snapshot) -> None:
        forwarder = self.forwarders.get(snapshot.pool)
        if forwarder is not None:
            forwarder.keep_only({backend.url for backend in snapshot.backends.values()})


def is_bound_to(name: Any, bind: str) -> bool:
    """Is `name`, as `getsockname` gives it, the address that `bind` (host:port or unix:path) means?"""
    if isinstance(name, str | bytes):
        return bind == f"unix:{os.fsdecode(name)}"
    host, _, port = bind.rpartition(":")
    if not port.isdigit() or name[1] != int(port):
        return False
    try:
        found = socket.getaddrinfo(host.strip("[]") or None, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(address[0] == name[0] for *_, address in found)
