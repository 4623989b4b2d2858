"""Claims: which backend gets the next request, and its release, for one pool in one worker.

Group commit: every greenlet that needs a backend in one turn of the event loop, and every
connection released since the last turn, goes to the store in one call of `redis/claim.lua`.
Each pick is still one atomic step there, exact across processes and machines; the cost of a
request falls as load rises. One call at a time is under way; its answer wakes its greenlets.

When the store does not answer, `Claims` picks from the last snapshot by itself (`lb.algorithms.local`)
until the connection is back, then opens its lease anew with what it holds, so that the counts are right.

Who finds every backend full may wait in the pool's queue: a ticket there claims like anybody else, but its
wish names the ticket (see `lb.state.queue`, which says when it asks).

This module decides and keeps the books; how bytes reach the store is `lb.state.link`'s matter. What a claim
asks for (its candidates, who is excluded) travels as text, see `lb.state.picker`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lb.algorithms.base import Request
from lb.algorithms.eligible import zones
from lb.model import Backend, Snapshot
from lb.state.choice import Choice
from lb.state.explain import Explainer
from lb.state.guard import Event, Guard, call_keys
from lb.state.held import Held
from lb.state.keys import PoolKeys
from lb.state.scripts import CLAIM_SHA
from lb.state.wishes import (
    CANARY,
    EXPLAINED,
    PLAIN,
    PROBING,
    QUEUED,
    WIDE,
    Line,
    Waiter,
    bare,
    mark_of,
    marked,
    number_of,
)

MAX_BATCH = 128
"""Claims in one call: the store serves nobody else meanwhile."""

LEASE_LOST = -1


class Claims:
    """The claims of one pool in one worker. Not thread-safe: its callers share one event loop.

    `schedule(self)` asks for a `batch` soon, `release_soon(self)` within a few milliseconds. `wake` gives a
    waiter its pick from wherever it is called; `settle` alone, which is called in the event loop, may switch
    to waiters itself.
    """

    def __init__(
        self,
        keys: PoolKeys,
        worker: str,
        snapshot: Snapshot,
        schedule: Callable[[Claims], None],
        release_soon: Callable[[Claims], None],
        on_gap: Callable[[Claims], None],
        wake: Callable[[Waiter, Backend | None], None],
        zone: str = "",
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.keys = keys
        self.worker = worker
        #: Where this worker stands; "" for nowhere in particular.
        self.zone = zone
        self.epoch = ""
        #: Those of ours who wait in the queue; are there any? Then who comes now waits behind them.
        self.line: Line | None = None
        self.crowded = False
        #: Is there a cap? Then somebody elsewhere may wait for what is given back.
        self.capped = False
        #: Does the store take our claims? False: picks are made from the snapshot.
        self.shared = False
        #: Does our lease stand in the store? Between `prepare` and `begin` claims wait for it.
        self.ready = False
        #: Has the link been told, and not asked for a batch since?
        self.queued = False
        self.waiting: list[tuple[Waiter, str]] = []
        self.released: dict[str, int] = {}
        #: Connections this worker holds: what its lease must say.
        self.held = Held()
        self.calls = 0
        self.picks = 0
        self.local_picks = 0
        self.seen_version = 0
        #: Answers' times by backend since the last call: their number, sum and largest, in seconds.
        self._times: dict[str, tuple[int, float, float]] = {}
        self._flying: list[tuple[Waiter, str]] = []
        self._unknown: list[tuple[Waiter, str, bytes]] = []
        self._schedule = schedule
        self._release_soon = release_soon
        self._on_gap = on_gap
        self.wake = wake
        self._head: tuple[str, ...] = ()
        #: What a call says of zones, where there are any: that it is served from the own one, or from all.
        self._near = self._wide = ""
        self._call_keys: tuple[str, ...] = ()
        self.choice = Choice(snapshot, self.held.counts, zone)
        #: Claims that are explained.
        self.explainer = Explainer(self)
        #: What became of the requests.
        self.guard = Guard(snapshot, tell)
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Take a newer view of the pool; picks that waited for it go on."""
        self.choice.update(snapshot)
        self.guard.update(snapshot)
        self.snapshot = snapshot
        self._address()
        self._by_key = {name.encode(): backend for name, backend in snapshot.backends.items()}
        self.capped = any(backend.max_connections for backend in snapshot.backends.values())
        if self._unknown:
            unknown, self._unknown = self._unknown, []
            for waiter, wish, key in unknown:
                backend = self._by_key.get(key)
                if backend is None:  # gone again already: what was claimed is given back, ask anew
                    self.release(key.decode())
                    self.waiting.append((waiter, wish))
                    self._schedule(self)
                else:
                    self.wake(waiter, backend)
        self._ask_anew()

    def _ask_anew(self) -> None:
        """There may be room for those in the queue, or none for them any more."""
        if self.crowded and self.line is not None:
            self.line.ask()

    def _address(self) -> None:
        """Say how calls begin: the lease, and the orders that the pool has by the snapshot."""
        there = zones(self.snapshot)
        self._call_keys = call_keys(self.keys, self.worker, there)
        self._head = ("EVALSHA", CLAIM_SHA, str(len(self._call_keys)), *self._call_keys, self.epoch)
        names = "\n".join(there)
        self._near = f"\t{self.choice.zone}\t{names}" if there else ""
        self._wide = f"\t\t{names}" if there else ""

    def prepare(self) -> dict[str, int]:
        """The store is back: what a new lease must hold. Claims wait from here until `begin` or `fail`."""
        self.ready = False
        self.shared = True
        self._times.clear()
        self.guard.store_is(away=False)
        self.released.clear()  # given back before the lease is opened: already out of `held`
        return dict(self.held.counts)

    def begin(self, epoch: str) -> None:
        """The lease stands in the store under `epoch`, as `prepare` said: go on with shared picks."""
        self.epoch = epoch
        self.held.opened()
        self._address()
        self.ready = True
        self._ask_anew()
        if self.waiting or self.released:
            self._schedule(self)

    # What the request path calls.

    def claim(
        self,
        waiter: Waiter,
        switch: Callable[[], Any],
        exclude: Sequence[str] = (),
        request: Request | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None:
        """Take a backend, `own` if it can, not one of `exclude`; None when none may take it. `switch` lets
        `waiter` wait.

        Where nobody of the own zone may take it, somebody of another one does. A request that others have
        failed (`exclude`) and that nobody else may take gets a backup.
        """
        if self.crowded and not exclude:
            return None
        pick = self.take(waiter, switch, self.choice.wish(exclude, request, canary, own))
        if pick is None and self.choice.zone:
            pick = self.take(waiter, switch, self.choice.wide(exclude, canary))
        if pick is None and exclude:
            last = self.choice.last_resort(exclude)
            if last:
                pick = self.take(waiter, switch, last)
        return pick

    def probe(self, waiter: Waiter, switch: Callable[[], Any], name: str, wish: str) -> Backend | None:
        """Take `name`, which is ejected, if this request may probe it; else whom `wish` would give."""
        if self.shared:
            return self.take(waiter, switch, marked(PROBING, wish, name))
        backend = self.snapshot.backends.get(name)
        return self._pick_locally(wish) if backend is None else self._take_locally(backend)

    def ask(self, waiter: Waiter, wish: str) -> bool:
        """Let `waiter` have a pick, or None, with the next call; while the store is away, from the snapshot:
        returns False when there is none, and does not wake it.
        """
        if self.shared:
            self.waiting.append((waiter, wish))
            if not self.queued:
                self._schedule(self)
            return True
        pick = self._pick_locally(wish)
        if pick is not None:
            self.wake(waiter, pick)
        return pick is not None

    def take(self, waiter: Waiter, switch: Callable[[], Any], wish: str) -> Backend | None:
        """Wait for the pick of one wish."""
        if not self.shared:
            return self._pick_locally(wish)
        self.waiting.append((waiter, wish))
        if not self.queued:
            self._schedule(self)
        pick: Backend | None = switch()
        return pick

    def release(self, name: str, took: float = -1.0) -> None:
        """Give back what a claim took; `took`: seconds until the answer, below 0 if that says nothing."""
        if not self.held.drop(name):
            return
        if self.shared:
            released = self.released
            released[name] = released.get(name, 0) + 1
            if took >= 0.0 and self.choice.timed:
                number, total, most = self._times.get(name, (0, 0.0, 0.0))
                self._times[name] = (number + 1, total + took, max(most, took))
            if self.crowded and self.line is not None:
                # What is free now and who may have it: in one call, at once.
                self.line.ask(1)
                self._schedule(self)
                self._release_soon(self)
            elif not self.waiting and self.ready:
                self._release_soon(self)
        else:
            self.choice.released(name)
            self._ask_anew()

    def blame(self, name: str, took: float, outcome: int) -> None:
        """`release`, and what became of the request: see `lb.state.guard`."""
        self.guard.note(name, outcome)
        self.release(name, took)

    # What the link calls.

    def batch(self) -> tuple[str | int | float | bytes | memoryview, ...] | None:
        """The next call as a command, or None when there is nothing to say."""
        self.queued = False
        waiting, released = self.waiting, self.released
        if not self.ready or not (waiting or released):
            return None
        if self.guard.pending:
            # With the connections that they give back, and nothing else: claims go next.
            self._flying = []
            return self._with_releases(
                self.guard.report(self._call_keys, self.epoch, len(released), self._near)
            )
        if len(waiting) > MAX_BATCH:
            flying, self.waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
        else:
            flying, self.waiting = waiting, []
        served, head = self._near, self._head
        wishes: list[str] = []
        if any(wish for _, wish in flying):
            if any(mark_of(wish) for _, wish in flying):
                flying = self._of_one_mark(flying)
                served, head = self._served(flying)
            flying.sort(key=lambda entry: bare(entry[1]) != PLAIN)  # the script wants these at the end
            if not mark_of(flying[0][1]) & PROBING:
                wishes = [text for _, wish in flying if (text := bare(wish)) != PLAIN]
        command: list[str | int | float | bytes | memoryview] = [*head]
        if head is self._head and self.held.lengthy():
            command[-1] = self.held.whole(self.epoch)
        command.append(str(len(flying)))
        command.append(str(len(released)))
        command.append(served)
        self._flying = flying
        return self._with_releases(command, wishes)

    def _with_releases(
        self, command: list[str | int | float | bytes | memoryview], wishes: Sequence[str] = ()
    ) -> tuple[str | int | float | bytes | memoryview, ...]:
        """A call that begins so, with all that is to be given back."""
        times, released = self._times, self.released
        for name, count in released.items():
            command.append(name)
            if times and (time := times.get(name)) is not None:
                command.append(f"{count} {time[1] / time[0]:.6f} {time[2]:.6f}")
            else:
                command.append(str(count))
        command += wishes
        self.released = {}
        if times:
            self._times = {}
        self.calls += 1
        self.held.told(len(self._flying) + len(released))
        return tuple(command)

    def _of_one_mark(self, flying: list[tuple[Waiter, str]]) -> list[tuple[Waiter, str]]:
        """Of claims with several marks those that one call can serve; the others wait for the next one."""
        mark = mark_of(flying[0][1])
        chosen = [entry for entry in flying if mark_of(entry[1]) == mark]
        if mark & (EXPLAINED | PROBING):
            chosen = chosen[:1]
            self.waiting = flying[1:] + self.waiting
        else:
            self.waiting = [entry for entry in flying if mark_of(entry[1]) != mark] + self.waiting
        return chosen

    def _served(self, flying: list[tuple[Waiter, str]]) -> tuple[str, tuple[str, ...]]:
        """What a call says of all its claims, which have one mark, and how it begins."""
        mark, head = mark_of(flying[0][1]), self._head
        served = ("c" if mark & CANARY else "") + (self._wide if mark & WIDE else self._near)
        if mark & QUEUED and self.line is not None:
            tickets = self.line.says([wish for _, wish in flying])
            served = f"{served}\t{tickets}" if self._near else f"{served}\t\t\t{tickets}"
        if mark & EXPLAINED:
            head = self.explainer.head(head, flying[0][1])
        elif mark & PROBING:
            name, wish = number_of(flying[0][1]), bare(flying[0][1])
            head = self.guard.probing(self._call_keys, self.epoch, name, wish)
        return served, head

    def settle(self, answer: list[Any]) -> None:
        """The store's answer to the last batch: wake who waits. Switches to other greenlets."""
        flying, self._flying = self._flying, []
        version = answer[0]
        if version == LEASE_LOST:
            # Reaped, while this process was stopped or cut off. What it holds is counted again by `begin`.
            self.waiting = flying + self.waiting
            self.ready = False
            self._on_gap(self)
            return
        self.picks += len(flying)
        if not flying and len(answer) > 1:
            self.guard.told(answer)
        mark = mark_of(flying[0][1]) if flying else 0
        if mark & EXPLAINED:
            self.explainer.told(flying[0][1], answer)
        elif mark & QUEUED and len(answer) > len(flying) + 1 and self.line is not None:
            self.line.refuse(answer[-1].decode())
        if version != self.snapshot.version:
            self.seen_version = version
            self._on_gap(self)
        held, by_key = self.held.counts, self._by_key
        at = 0
        for waiter, wish in flying:
            at += 1
            key = answer[at]
            if key is None:
                waiter.switch(None)
                continue
            backend = by_key.get(key)
            if backend is None:
                name = key.decode()
                held[name] = held.get(name, 0) + 1
                self._unknown.append((waiter, wish, key))
                continue
            name = backend.id
            held[name] = held.get(name, 0) + 1
            waiter.switch(backend)

    def fail(self) -> None:
        """The store did not answer: serve everybody who waits from the snapshot, and so until `begin`."""
        if self.shared:
            self.choice.begin()
            self.guard.store_is(away=True)
        self.shared = self.ready = False
        flying, self._flying = self._flying, []
        waiting, self.waiting = self.waiting, []
        unknown, self._unknown = self._unknown, []
        for waiter, wish, key in unknown:
            self.held.drop(key.decode())
            waiting.append((waiter, wish))
        self._serve_locally(flying + waiting)
        self._ask_anew()

    def _pick_locally(self, wish: str) -> Backend | None:
        backend = self.choice.pick(wish)
        return None if backend is None else self._take_locally(backend)

    def _take_locally(self, backend: Backend) -> Backend:
        self.local_picks += 1
        self.held.take(backend.id)
        return backend

    def _serve_locally(self, waiters: list[tuple[Waiter, str]]) -> None:
        for waiter, wish in waiters:
            self.wake(waiter, self._pick_locally(wish))
