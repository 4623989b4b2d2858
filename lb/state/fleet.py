"""A worker's part in the fleet: its claims in every pool, kept in step with the shared state.

`Fleet.claims_of(pool)` is what the request path uses. Around it one loop looks after the rest: it beats,
reaps dead workers, reads what changed, and when the store goes away and comes back it reconnects, opens
the leases anew and goes back to shared picks. Every fault in it is logged and the loop goes on.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

from lb.algorithms.eligible import Eligible, eligible, zone_of
from lb.errors import StoreError, StoreUnavailable
from lb.model import Backend, Snapshot
from lb.settings import PoolConfig
from lb.state import changes, decide
from lb.state.claims import Claims
from lb.state.ejections import Ejections
from lb.state.keys import PoolKeys
from lb.state.knock import Accepts, Knocks
from lb.state.lease import BEAT, WorkerLease, reap_dead
from lb.state.link import STALL
from lb.state.registry import Registry
from lb.state.scripts import LeaseLost
from lb.state.store import connect
from lb.state.wishes import Waiter

_LOG = logging.getLogger("lb")

NEVER = float("inf")

UNWATCHED = 2.0
"""Seconds without a health daemon after which backends that wait for a first probe get traffic."""

REAP_EVERY = 1.0
"""Seconds between two looks for dead workers, per worker, spread by chance."""


class LinkLike(Protocol):
    """The connection for claims; see `lb.state.link` and `lb.state.threads`.

    Whoever changes claims from outside the request path holds `lock`; `calls` is enough to let those in the
    queue ask.
    """

    @property
    def lock(self) -> AbstractContextManager[Any]: ...
    @property
    def calls(self) -> AbstractContextManager[Any]: ...
    @property
    def up(self) -> bool: ...
    def connect(self, client: Any) -> None: ...
    def close(self) -> None: ...
    def schedule(self, claims: Claims) -> None: ...
    def release_soon(self, claims: Claims) -> None: ...
    def wake(self, waiter: Waiter, pick: Backend | None) -> None: ...


class Runtime(Protocol):
    """Greenlets or threads: how this worker waits and starts something beside itself."""

    def event(self) -> Any: ...
    def spawn(self, function: Callable[[], None]) -> Any: ...
    def link(self, on_down: Callable[[str], None]) -> LinkLike: ...
    def source(self, claims: Claims) -> Any: ...


class Fleet:
    """The shared state as one worker sees it, which stands in `zone` ("": in none). `on_update` is told of
    each new snapshot, `on_beat` may use the store once a second, and once more at the end. `accepts` tries a
    connection to a backend, see `lb.state.knock`.
    """

    def __init__(
        self,
        url: str,
        pools: Mapping[str, PoolConfig],
        worker: str,
        runtime: Runtime,
        on_update: Callable[[Snapshot], None] = lambda snapshot: None,
        on_beat: Callable[[Registry], None] = lambda registry: None,
        zone: str = "",
        accepts: Accepts = lambda pool, url, timeout: None,
    ) -> None:
        self.worker = worker
        #: Why the shared state is not in use; "" while it is.
        self.degraded = "not connected yet"
        self.degraded_count = 0
        #: What the fleet signs with, by pool, where a pool needs that and this worker knows it.
        self.secrets: dict[str, bytes] = {}
        self._said = False
        self._url = url
        self._pools = pools
        self._runtime = runtime
        self._on_update = on_update
        self._on_beat = on_beat
        self._wake = runtime.event()
        self._stopping = False
        self._stale: set[str] = set()
        self._client: Any = None
        self._brisk: Any = None
        self._leases: dict[str, WorkerLease] = {}
        self._listener: Any = None
        self._last_reap = monotonic()
        self._unwatched_since = NEVER
        self._link = runtime.link(self._on_down)
        self._ejections = Ejections(self._take, self._wake.set, Knocks(runtime, accepts))
        self.claims: dict[str, Claims] = {}
        self._sources: dict[str, Any] = {}
        for name, config in pools.items():
            keys = PoolKeys(name)
            snapshot = from_config(name, config)
            link = self._link
            tell = partial(self._ejections.tell, name)
            claims = Claims(
                keys,
                worker,
                snapshot,
                link.schedule,
                link.release_soon,
                self._on_gap,
                link.wake,
                zone,
                tell,
            )
            self.claims[name] = claims
            self._sources[name] = runtime.source(claims)

    def claims_of(self, pool: str) -> Any:
        """What the request path calls for `pool`."""
        return self._sources[pool]

    def start(self) -> None:
        """Connect and look after things from now on; without a store, serve all the same."""
        self._try_connect()
        self._runtime.spawn(self._maintain)

    def stop(self) -> None:
        """Give back what is still held and leave. Never raises."""
        self._stopping = True
        self._wake.set()
        self._ejections.stop()
        if self._listener is not None:
            self._listener.stop()
        with self._link.lock:
            for claims in self.claims.values():
                if claims.line is not None:
                    claims.line.close()
                claims.fail()
        self._link.close()
        if self._client is not None:
            try:
                for lease in self._leases.values():
                    lease.close()
                self._on_beat(Registry(self._client))
            except Exception as exc:  # noqa: BLE001 - whatever it is, this process is about to end
                _LOG.debug("leaving the shared state: %s", exc)
            self._client.close()
            self._brisk.close()

    def registry(self) -> Registry | None:
        """The shared state for a request that needs more of it than a claim; None while it is away.

        It answers, or fails, as soon as claims do.
        """
        return None if self.degraded else Registry(self._brisk)

    # What the link and the claims tell us; called in the event loop, so nothing here may wait.

    def _on_down(self, why: str) -> None:
        if not self._said:
            self._said = True
            self.degraded_count += 1
            _LOG.warning("shared state away (%s): balancing on this worker's own view until it is back", why)
        self.degraded = why
        with self._link.lock:
            for claims in self.claims.values():
                claims.fail()
        self._wake.set()

    def _on_gap(self, claims: Claims) -> None:
        self._stale.add(claims.keys.pool)
        self._wake.set()

    def _on_message(self, pool: str, message: bytes) -> None:
        claims = self.claims.get(pool)
        if claims is None:
            return
        with self._link.lock:
            snapshot = changes.apply(claims.snapshot, message)
            if snapshot is None:
                self._on_gap(claims)
            elif snapshot is not claims.snapshot:
                self._take(claims, snapshot)

    def _on_call(self, pool: str, message: bytes) -> None:
        """So many of those who wait here in the queue may have a slot."""
        claims = self.claims[pool]
        with self._link.calls:
            if claims.line is not None:
                claims.line.called_up(int(message))

    def _on_reconnected(self) -> None:
        self._stale.update(self.claims)
        self._wake.set()

    # The loop.

    def _maintain(self) -> None:
        pause = 0.1
        while not self._stopping:
            self._wake.wait(min(BEAT, pause) if self.degraded else BEAT)
            self._wake.clear()
            try:
                if self.degraded or not self._link.up:
                    pause = 0.1 if self._try_connect() else min(pause * 2, 1.0)
                    if self.degraded:
                        self._wake.clear()  # set by ourselves: there is nothing new to look at
                        self._ejections.look_after(self.claims, None)
                else:
                    self._look_after()
            except StoreError as exc:
                self._link.close()
                self._on_down(str(exc))
            except Exception:  # noqa: BLE001 - this loop must not end
                if not self._ends():  # else what it was at was closed beneath it
                    _LOG.exception("looking after the shared state failed; going on")

    def _ends(self) -> bool:
        """Has `stop` been called? Asked of a method, because it is while something else runs."""
        return self._stopping

    def _look_after(self) -> None:
        if self._stopping:
            return
        registry = Registry(self._client)
        self._ejections.look_after(self.claims, registry)
        stale, self._stale = self._stale, set()
        for name, claims in self.claims.items():
            if not claims.ready:
                self._open(registry, claims)
                continue
            try:
                version = self._leases[name].beat()
            except LeaseLost:
                self._open(registry, claims)
                continue
            if version != claims.snapshot.version or name in stale:
                self._take(claims, registry.load(name))
            if claims.choice.tallies:
                tallies, claims.choice.tallies = claims.choice.tallies, {}
                registry.add_trial(name, tallies)
        self._on_beat(registry)
        self._promote_unwatched(registry)
        if monotonic() - self._last_reap > REAP_EVERY * (0.75 + 0.5 * random.random()):
            self._last_reap = monotonic()
            for name in self.claims:
                reap_dead(registry, name)

    def _promote_unwatched(self, registry: Registry) -> None:
        """Let backends that wait for a first probe have traffic when no health daemon is left to probe them.

        Not at once: between a holder's death and its successor there is a moment without one.
        """
        waiting = [
            claims
            for claims in self.claims.values()
            if any(backend.health == "checking" for backend in claims.snapshot.backends.values())
        ]
        if not waiting or registry.health_owner() is not None:
            self._unwatched_since = NEVER
        elif self._unwatched_since == NEVER:
            self._unwatched_since = monotonic()
        elif monotonic() - self._unwatched_since > UNWATCHED:
            for claims in waiting:
                self._take(claims, registry.promote_checking(claims.keys.pool))

    def _try_connect(self) -> bool:
        try:
            client = connect(self._url)
            client.ping()
            old, self._client = self._client, client
            if old is not None:
                old.close()
                self._brisk.close()
            self._brisk = connect(self._url, socket_timeout=STALL, connect_timeout=STALL)
            registry = Registry(client)
            self._leases = {name: WorkerLease(registry.scripts, name, self.worker) for name in self.claims}
            self._try_out()
            self._link.connect(client)
            for claims in self.claims.values():
                self._open(registry, claims)
        except Exception as exc:  # noqa: BLE001 - whatever it is, serving goes on without the store
            if not isinstance(exc, StoreError):
                _LOG.debug("connecting to the shared state", exc_info=True)
            self._link.close()
            self._on_down(str(exc))
            return False
        self._said = False
        if self.degraded:
            _LOG.info("shared state in use: %s", ", ".join(self.claims))
        self.degraded = ""
        if self._listener is None:
            self._listener = changes.Listener(
                lambda: connect(self._url),
                list(self.claims),
                self._on_message,
                self._on_reconnected,
                self.worker,
                self._on_call,
            )
            self._runtime.spawn(self._listener.run)
        else:
            # Its connection may have survived, to a server that is the primary no more.
            self._listener.reconnect()
        return True

    def _try_out(self) -> None:
        """See how long a script takes, while nobody waits for it: claims and leases are scripts.

        A store may put those off (`CLIENT PAUSE … WRITE`) while it answers all else at once, or just be slow.
        Raises StoreUnavailable when they would stall.
        """
        for lease in list(self._leases.values())[:1]:
            began = 0.0
            for _ in range(2):  # the first one may have to teach the server the script
                began = monotonic()
                with suppress(LeaseLost):
                    lease.beat()
            if (took := monotonic() - began) > STALL:
                raise StoreUnavailable(f"a script takes {took:.1f} s")

    def _open(self, registry: Registry, claims: Claims) -> None:
        """Bring one pool up to date and put our lease into it."""
        pool = claims.keys.pool
        snapshot = registry.load(pool)
        if snapshot.version == 0 and not self._ends():
            # A store that has never seen this pool, or has lost it: give it what we know.
            snapshot = registry.change(pool, decide.restore(claims.snapshot))
        sticky = self._pools[pool].sticky
        if sticky.cookie and not sticky.secret:
            # A store that has lost it gets back what the workers know.
            self.secrets[pool] = registry.secret(pool, self.secrets.get(pool) or secrets.token_bytes(32))
        with self._link.lock:
            if self._ends():
                return  # `stop` has closed it, or is about to: nobody would close it again
            self._take(claims, snapshot)
            lease = self._leases[pool]
            lease.open(claims.prepare())
            claims.begin(lease.epoch)

    def _take(self, claims: Claims, snapshot: Snapshot) -> None:
        now = eligible(snapshot)
        with self._link.lock:
            before, kept = eligible(claims.snapshot), claims.choice.zone
            claims.update(snapshot)
        if before.mode != now.mode:
            _LOG.log(*_said(snapshot, now))
        if kept != claims.choice.zone:
            _LOG.log(*_said_of_zone(snapshot, claims.zone))
        self._on_update(snapshot)


def _said(snapshot: Snapshot, found: Eligible) -> tuple[int, str]:
    """Level and text of the log line for who serves from now on."""
    pool, many = snapshot.pool, f"{len(found.names)} of {len(snapshot.backends)} backends"
    match found.mode:
        case "panic":
            threshold = snapshot.settings.panic_threshold
            why = f"fewer than {threshold:.4g} of the backends are healthy, and no backup is"
            return logging.WARNING, f"pool {pool}: panic: {why}; balancing over {many}, whatever their health"
        case "ejected":
            return logging.WARNING, f"pool {pool}: nobody else can serve: {many}, ejected ones, get requests"
        case "backup":
            return logging.WARNING, f"pool {pool}: backups serve: {many} get requests"
    return logging.INFO, f"pool {pool}: backends serve as usual again: {many} get requests"


def _said_of_zone(snapshot: Snapshot, zone: str) -> tuple[int, str]:
    """The same for whether the own zone is kept to from now on."""
    found = zone_of(snapshot, zone)
    said = f"pool {snapshot.pool}: {found.available} of {found.members} backends of zone {zone} are available"
    if found.suffices:
        return logging.INFO, f"{said}: they get the requests of this zone"
    threshold = snapshot.settings.zone_threshold
    return logging.WARNING, f"{said}, a share below {threshold:.4g}: balancing over all zones"


def from_config(name: str, config: PoolConfig) -> Snapshot:
    """The pool as the configuration has it: what a worker goes by until it has seen the shared state."""
    return decide.configured(name, decide.settings_of(config), config.backends)
