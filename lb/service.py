"""Everything one worker process needs to serve requests, put together from its configuration."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

from lb.accesslog import AccessLog, Entry
from lb.errors import StoreError
from lb.forwarded import Forwarding
from lb.model import Snapshot
from lb.once import Once
from lb.proxy.conn import Reactor
from lb.proxy.forward import Forwarder
from lb.proxy.reveal import reveal
from lb.proxy.trace import Recorder
from lb.routing import Router
from lb.scoreboard import Place, alone
from lb.settings import Settings
from lb.state.budget import Budget
from lb.state.decisions import write
from lb.state.fleet import Fleet, Runtime
from lb.state.onetime import Entries
from lb.state.registry import Registry
from lb.state.store import store_url
from lb.sticky import sticky_pools
from lb.vitals import Vitals
from lb.wsgi import raw_fields

_LOG = logging.getLogger("lb")

DEFAULT_POOL = "default"


class Service:
    """The parts of one worker. `reactor` None means threads.

    `control` answers what comes in on the control listener, whose addresses are `control_addresses`;
    `contexts` has, for each pool, how it speaks TLS to backends; `leaving` says whether the whole balancer is
    about to end; `place` is its on the scoreboard of all workers.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        reactor: Reactor | None,
        control: Callable[..., Iterable[bytes]],
        contexts: Mapping[str, ssl.SSLContext],
        leaving: Callable[[], bool] = lambda: False,
        place: Place | None = None,
    ) -> None:
        self.settings = settings
        self.control = control
        self.control_addresses: tuple[Any, ...] = ()
        self.draining = False
        self.leaving = leaving
        #: Bytes: the largest body of a request; 0: any.
        self.body_limit = settings.limits.body
        self.log = AccessLog(settings.log.access)
        worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        url = store_url(settings.redis_url, settings.runtime_dir)
        #: How requests got their backends, until that is written to the shared state.
        self.recorder = Recorder(settings.decisions, worker)
        self._untold = False
        self.reveal = reveal(settings.decisions)
        self.fleet = Fleet(
            url,
            settings.pools,
            worker,
            runtime,
            self._on_update,
            self._on_beat,
            settings.zone,
            self._accepts,
        )
        budgets = {
            name: Budget(name, config.retry, self.fleet.registry) for name, config in settings.pools.items()
        }
        #: What this worker tells of itself.
        self.vitals = Vitals(place or alone(settings.pools), self.fleet, self.log, budgets, runtime)
        self.forwarders = {
            name: Forwarder(
                name,
                config,
                self.fleet.claims_of(name),
                reactor,
                self.log,
                contexts[name],
                self.recorder,
                budgets[name],
                self.reveal,
                settings.client.stream_close_delay,
                settings.client.request,
            )
            for name, config in settings.pools.items()
        }
        for name, config in settings.pools.items():
            if config.hedge.enabled and reactor is None:
                _LOG.warning(
                    "pool %s: there are no hedges under gthread: a thread's wait cannot be ended", name
                )
        #: By pool, where requests with an Idempotency-Key are carried out once.
        self.once = {
            name: Once(
                config.idempotency,
                self.forwarders[name],
                Entries(name, worker, config.idempotency, self.fleet.registry),
                reactor,
            )
            for name, config in settings.pools.items()
            if config.idempotency.enabled
        }
        #: By pool, where clients stay at their backends.
        self.sticky = sticky_pools({name: config.sticky for name, config in settings.pools.items()})
        for name in self.sticky:
            self._on_update(self.fleet.claims[name].snapshot)
        # Without routes everything goes to one pool; lb.config sees to it that it is clear which.
        only = DEFAULT_POOL if DEFAULT_POOL in settings.pools else next(iter(settings.pools))
        self.router = Router(settings.routes, only)
        self.forwarding = Forwarding(settings.trusted_proxies, settings.forwarded)
        self._prefix = secrets.token_hex(6)
        self._count = count(1 << 28)  # so that all are of one length

    def start(self) -> None:
        """Join the fleet."""
        self.fleet.start()
        self.vitals.start()

    def stop(self) -> None:
        """Leave the fleet, close what is open, write the log's rest."""
        self.fleet.stop()
        for forwarder in self.forwarders.values():
            forwarder.close()
        self.log.finish()
        self.vitals.stop()

    def kinds_of(self, names: list[Any]) -> list[str]:
        """Which kind each listener is, `data` or `control`, given as `getsockname` names it."""
        bind = self.settings.control_bind
        kinds = ["control" if is_bound_to(name, bind) else "data" for name in names]
        self.control_addresses = tuple(
            name for name, kind in zip(names, kinds, strict=True) if kind == "control"
        )
        return kinds

    def scheme(self, environ: dict[str, Any]) -> str:
        """The scheme that the client uses, by the word of a trusted proxy where there is one."""
        own: str = environ["wsgi.url_scheme"]
        if self.forwarding.plain:
            return own
        return self.forwarding.scheme(environ.get("REMOTE_ADDR", ""), own, raw_fields(environ))

    def about_client(self, environ: dict[str, Any], host: str) -> bytes:
        """The lines for a backend that say who asks, see `lb.forwarded`."""
        forwarding = self.forwarding
        return forwarding.lines(
            environ.get("REMOTE_ADDR", ""),
            environ["wsgi.url_scheme"],
            environ["SERVER_PORT"],
            host,
            () if forwarding.plain else raw_fields(environ),
            environ["SERVER_PROTOCOL"][5:],
        )

    def about(self, entry: Entry) -> list[tuple[str, str]]:
        """The fields of the balancer's own answer that say how it came to that, where that is revealed."""
        value = "" if self.reveal is None else self.reveal.value(entry)
        return [] if self.reveal is None or not value else [(self.reveal.name, value)]

    def next_id(self) -> str:
        """A request id, unique over all workers."""
        return self._prefix + hex(next(self._count))[2:]  # noqa: FURB116 - formatting takes twice as long

    def _accepts(self, pool: str, url: str, timeout: float) -> bool | None:
        return self.forwarders[pool].accepts(url, timeout)

    def _on_beat(self, registry: Registry) -> None:
        for forwarder in self.forwarders.values():
            forwarder.beat(registry)
        for once in self.once.values():
            once.entries.beat(registry)
        if self.recorder.pending:
            settings, found = self.settings.decisions, list(self.recorder.pending)
            try:
                write(registry, found, settings.keep, settings.size)
            except StoreError as exc:  # no reason to balance without it: claims find out by themselves
                if not self._untold:
                    _LOG.warning("decisions cannot be written, the last of them are held: %s", exc)
                self._untold = True
            else:
                self._untold = False
                self.recorder.written(found)

    def _on_update(self, snapshot: Snapshot) -> None:
        forwarder = self.forwarders.get(snapshot.pool)
        if forwarder is not None:
            forwarder.update(snapshot)
        sticky = self.sticky.get(snapshot.pool)
        if sticky is not None:
            sticky.update(snapshot, self.fleet.secrets.get(snapshot.pool, b""))


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
