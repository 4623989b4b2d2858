"""What becomes of a request, written down while it happens or, when it fails, from then on.

A request that was drawn (`decisions.sample`) has a `Trace` from the beginning: its claims are explained by
the shared state. One that fails gets its trace when it does, and the worker tells what it knows by itself. A
`Recorder` holds those that are over until somebody writes them (`lb.state.decisions`): the last `PENDING`, so
that no number of failures takes more memory.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Sequence
from math import ceil
from time import perf_counter
from typing import Protocol

from lb.accesslog import Entry
from lb.algorithms.request import HeadRequest
from lb.decision import Attempt, Decision
from lb.errors import ClientGone, NoBackend, ProxyError, RequestTimeout
from lb.model import Backend
from lb.settings import DecisionSettings
from lb.state.seen import Seen

PENDING = 256
"""Decisions that a worker holds at most until they are written; of more, the last."""

DETAILED = 8
"""Attempts of one request at most that tell of their candidates."""

NEVER = 1 << 62
"""Requests until the next that is drawn, where none is."""

_PATH, _HOST, _DETAIL = 256, 128, 200
_CLIENTS = (ClientGone.code, RequestTimeout.code)


class Explains(Protocol):
    """What a trace asks of the claims of a pool; see `lb.state.explain`."""

    def claim(
        self,
        exclude: Sequence[str] = (),
        request: HeadRequest | None = None,
        canary: bool = False,
        own: str = "",
    ) -> Backend | None: ...
    def explain(
        self, exclude: Sequence[str], request: HeadRequest | None, canary: bool, own: str
    ) -> tuple[Backend | None, Seen]: ...
    def seen(self, pick: str, exclude: Sequence[str], canary: bool, own: str) -> Seen: ...
    def algorithm(self, canary: bool) -> tuple[str, int]: ...


class Recorder:
    """The decisions of one worker that are worth keeping, and nobody has written yet."""

    def __init__(self, settings: DecisionSettings, worker: str) -> None:
        self.worker = worker
        self.settings = settings
        #: With their pool's name in each; appending and taking from the left are safe among threads.
        self.pending: deque[Decision] = deque(maxlen=PENDING)

    def find(self, request_id: str) -> Decision | None:
        """One that has not been written yet."""
        return next((one for one in reversed(self.pending.copy()) if one.id == request_id), None)

    def written(self, found: Collection[Decision]) -> None:
        """They need not be held any more. Until then they can be found here."""
        gone = {id(one) for one in found}
        while self.pending and id(self.pending[0]) in gone:
            self.pending.popleft()


class Sampler:
    """Says which requests are drawn: every n-th, so that `share` (0 to 1) is met exactly. The first is drawn
    `first` (0 to 1) of such a step from now: workers should not draw at the same time.
    """

    def __init__(self, share: float, first: float) -> None:
        self._step = 1 / share if share > 0 else 0.0
        self._next = (first - 1) * self._step
        self._at = 0

    def gap(self) -> int:
        """How many requests from the last that was drawn until the next one, which is the last of them."""
        if not self._step:
            return NEVER
        self._next += self._step
        gap = max(1, ceil(self._next - 1e-9) - self._at)
        self._at += gap
        if self._at > 1 << 30:  # keeps the sum exact
            self._next -= self._at
            self._at = 0
        return gap


class Tracer:
    """Makes the traces of one pool."""

    def __init__(self, recorder: Recorder, claims: Explains) -> None:
        self._recorder = recorder
        self._claims = claims
        self.gap = Sampler(recorder.settings.sample, random.random()).gap
        rate = recorder.settings.rate
        self._apart = 1 / rate if rate > 0 else 0.0
        self._drawn = float("-inf")

    def sampled(self, entry: Entry, started: float, home: str) -> Trace | None:
        """For a request that was drawn, at `started` (by `perf_counter`); None when the last was just now: to
        explain a claim takes a call of its own.
        """
        if started - self._drawn < self._apart:
            return None
        self._drawn = started
        return Trace(self._recorder, self._claims, entry, started, home, sampled=True)

    def late(self, entry: Entry, started: float, home: str) -> Trace:
        """For a request of which something has failed."""
        return Trace(self._recorder, self._claims, entry, started, home, sampled=False)

    def settled(self, trace: Trace | None, entry: Entry, started: float, canary: bool) -> None:
        """A request is over that was answered. Without a trace so far it is kept if its answer was a failure:
        what clients do by themselves is none.
        """
        if trace is None:
            if entry.status < 500 and entry.code in ("", *_CLIENTS):
                return
            trace = self.late(entry, started, "")
            trace.answered(entry.backend, (), canary, "", entry.status, entry.upstream)
        trace.end(entry.status, entry.code, entry.backend)


class Trace:
    """One request. `home`: the backend that its client's cookie names."""

    def __init__(
        self, recorder: Recorder, claims: Explains, entry: Entry, started: float, home: str, sampled: bool
    ) -> None:
        self.sampled = sampled
        self._recorder = recorder
        self._claims = claims
        self._entry = entry
        self._started = started
        self._home = home
        self._attempts: list[Attempt] = []
        self._seen: Seen | None = None
        self._asked = self._began = started
        self._waited: float | None = None
        self._hedge = False

    def claim(
        self, exclude: Sequence[str], request: HeadRequest | None, canary: bool, own: str
    ) -> Backend | None:
        """A backend, as the claims of the pool give it; and what they gave it for."""
        self._asked = perf_counter()
        if self.sampled:
            pick, self._seen = self._claims.explain(exclude, request, canary, own)
        else:
            pick, self._seen = self._claims.claim(exclude, request, canary, own), None
        self._began = perf_counter()
        self._waited = self._began - self._asked
        return pick

    def waited(self) -> None:
        """It had to wait in the pool's queue, and has a backend by now: what was seen before is over."""
        self._seen = None
        self._began = perf_counter()
        self._waited = self._began - self._asked

    def answered(
        self, backend: str, tried: Sequence[str], canary: bool, own: str, status: int, took: float = -1.0
    ) -> None:
        """The head of an answer came, now, or `took` seconds after the attempt began."""
        self._add(backend, tried, canary, own, "answered", status, "", took)

    def discarded(
        self, backend: str, tried: Sequence[str], canary: bool, own: str, status: int, took: float
    ) -> None:
        """An answer came that `retry.on` names: another backend is tried, if there is one."""
        detail = f"{status} is in retry.on: another backend is tried"
        self._add(backend, tried, canary, own, "answered", status, detail, took)

    def outrun(
        self,
        backend: str,
        tried: Sequence[str],
        canary: bool,
        began: float,
        hedge: bool,
        failure: ProxyError | None,
    ) -> None:
        """Of two attempts at the same time this one has failed, or was not the first to answer. `began`: when
        it did, by `perf_counter`; `hedge`: is it the second one?
        """
        before = self._began, self._waited, self._seen
        self._began = began
        self._hedge = hedge
        if hedge:
            self._waited = self._seen = None
        if failure is None:
            self._add(backend, tried, canary, "", "outrun", 0, "the other attempt answered first")
        else:
            self._add(backend, tried, canary, "", failure.code, 0, str(failure)[:_DETAIL])
        if hedge:
            self._began, self._waited, self._seen = before
        # What is told next is the other one of the two.
        self._hedge = not hedge and failure is None

    def failed(self, backend: str, tried: Sequence[str], canary: bool, own: str, failure: ProxyError) -> None:
        """The attempt failed."""
        self._add(backend, tried, canary, own, failure.code, 0, str(failure)[:_DETAIL])

    def _add(
        self,
        backend: str,
        tried: Sequence[str],
        canary: bool,
        own: str,
        outcome: str,
        status: int,
        detail: str,
        took: float = -1.0,
    ) -> None:
        seen = self._seen or self._claims.seen(backend, tried, canary, own)
        self._seen = None
        told = len(self._attempts) < DETAILED
        hedge, self._hedge = self._hedge, False
        self._attempts.append(
            Attempt(
                backend=backend,
                at=round(self._began - (self._waited or 0.0) - self._started, 6),
                seconds=round(took if took >= 0.0 else perf_counter() - self._began, 6),
                outcome=outcome,
                basis=seen.basis,
                algorithm=seen.algorithm,
                version=seen.version,
                waited=None if self._waited is None else round(self._waited, 6),
                status=status,
                detail=detail,
                canary=seen.canary,
                hedge=hedge,
                mode=seen.mode,
                rule=seen.rule,
                key=seen.key,
                connections=seen.connections,
                candidates=seen.candidates if told else (),
                excluded=seen.excluded if told else (),
                omitted=seen.omitted if told else 0,
            )
        )

    def nobody(self, tried: Sequence[str], canary: bool, own: str, failure: ProxyError | None) -> None:
        """No backend may take the request (any more), or none had room in time (`failure`)."""
        code = NoBackend.code if failure is None or failure.source != "internal" else failure.code
        self._add("", tried, canary, own, code, 0, "")

    def end(self, status: int, code: str, backend: str) -> None:
        """The request is over."""
        entry = self._entry
        self._recorder.pending.append(
            Decision(
                id=entry.id,
                time=entry.time,
                pool=entry.pool,
                method=entry.method[:32],
                host=entry.host[:_HOST],
                path=entry.target.partition("?")[0][:_PATH],
                status=status,
                duration=round(perf_counter() - self._started, 6),
                sampled=self.sampled,
                worker=self._recorder.worker,
                backend=backend,
                code=code,
                home=self._home,
                kept=backend != "" and backend == self._home,
                attempts=tuple(self._attempts),
            )
        )
