"""A second attempt while the first is slow; whoever answers first wins, and the other one is ended.

Source: Dean and Barroso, "The Tail at Scale", 2013 (hedged requests). `Quantile` says what slow is, `Race`
runs the attempts: each in a greenlet of its own, so that the request waits for the first answer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2
from time import perf_counter
from typing import Any

from greenlet import getcurrent, greenlet

from lb.errors import ProxyError
from lb.model import Backend
from lb.proxy.conn import NEVER, Reactor
from lb.proxy.messages import ProxyRequest, ProxyResponse

SHARE = 0.95
"""Of the requests that a hedge is later than."""

ENOUGH = 50
"""Times that are needed before there is a quantile."""

MEMORY = 1000
"""Times after which those so far count half."""

_STEPS = 8
_LEAST = 2.0**-14
_BUCKETS = 24 * _STEPS


class Quantile:
    """The time that `SHARE` of the last requests were below, at most 9 % above the exact one. Pure.

    A histogram whose buckets grow by 2^(1/8), from 61 µs to a quarter of an hour; it fades by half every
    `MEMORY` times.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._counts = [0.0] * _BUCKETS
        self._total = 0.0
        self._until = MEMORY
        self._new = 0
        self._value = NEVER

    def add(self, seconds: float) -> None:
        """A request took so long."""
        at = ceil(log2(max(seconds, _LEAST) / _LEAST) * _STEPS)
        self._counts[min(at, _BUCKETS - 1)] += 1
        self._total += 1
        self._new += 1
        self._until -= 1
        if self._until <= 0:
            self._until = MEMORY
            self._counts = [count / 2 for count in self._counts]
            self._total /= 2

    def value(self) -> float:
        """Seconds; NEVER while too little is known. Worked out anew after every 16th time."""
        if self._total >= ENOUGH and (self._new >= 16 or self._value == NEVER):
            self._new = 0
            left = self._total * (1 - self._share)
            for at in range(_BUCKETS - 1, -1, -1):
                left -= self._counts[at]
                if left < 0:
                    self._value = _LEAST * 2.0 ** (at / _STEPS)
                    break
        return self._value


def _nothing() -> None:
    """Nothing is to be given back."""


class Outrun(Exception):
    """Raised in an attempt that has lost."""


class Runner:
    """One attempt. `result` is its answer, `failure` why there is none."""

    def __init__(self, race: Race, send: Callable[[], Any], lost: Callable[[], None], request: Any) -> None:
        self.result: Any = None
        self.failure: BaseException | None = None
        self.over = False
        self._race = race
        self._send = send
        self._lost = lost
        self._conn: Any = None
        self._outrun = False
        request.race = self

    def start(self) -> None:
        """Begin with the next turn of the loop."""
        reactor = self._race.reactor
        reactor.loop.run_callback(greenlet(self._run, reactor.hub).switch)

    def _run(self) -> None:
        try:
            self.result = self._send()
        except BaseException as exc:  # noqa: BLE001 - raised again in who waits for it
            self.failure = exc
        self.over = True
        self._conn = None
        if self._outrun:
            self._give_back()
        else:
            self._race.tell()

    def _give_back(self) -> None:
        if self.result is not None:
            self.result.close()
        self._lost()

    def runs_on(self, conn: Any) -> None:
        """The transport has a connection for it. Raises Outrun when that is too late."""
        if self._outrun:
            raise Outrun
        self._conn = conn

    def end(self) -> None:
        """It has lost: its connection is closed, and its claim given back, by itself."""
        if self._outrun:
            return
        self._outrun = True
        if self.over:
            self._give_back()
        else:
            self._race.reactor.loop.run_callback(self._interrupt)

    def abandon(self) -> None:
        """Nobody waits for it any more, and its claim is given back by somebody else."""
        self._lost = _nothing
        self.end()

    def _interrupt(self) -> None:
        if self._conn is not None:
            self._conn.interrupt(Outrun())


class Race:
    """What the request's greenlet waits for: an attempt that is over, or a time; a `lb.proxy.conn.Waiter`."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.reader: greenlet | None = None
        self.writer: greenlet | None = None
        self.deadline = NEVER
        self.runners: list[Runner] = []

    def run(self, send: Callable[[], Any], lost: Callable[[], None], request: Any) -> Runner:
        """Begin an attempt: `send` gives the answer; `lost` gives back its claim when it was outrun."""
        runner = Runner(self, send, lost, request)
        self.runners.append(runner)
        runner.start()
        return runner

    def wait(self, seconds: float = NEVER) -> Runner | None:
        """An attempt that has an answer; the last when all have failed; None after `seconds`."""
        timer: Any = None
        late = [False]
        if seconds != NEVER:
            timer = self.reactor.loop.timer(seconds)

            def ring() -> None:
                late[0] = True
                self.tell()

            timer.start(ring)
        self.reactor.streams.add(self)
        try:
            while True:
                for runner in self.runners:
                    if runner.over and runner.failure is None:
                        return runner
                if all(runner.over for runner in self.runners):
                    return self.runners[-1]
                if late[0]:
                    return None
                self.reader = getcurrent()
                self.reactor.switch()
        finally:
            self.reader = None
            self.reactor.streams.discard(self)
            if timer is not None:
                timer.close()

    def tell(self) -> None:
        """Something has happened that `wait` waits for. Called in the hub, or by an attempt that ends."""
        self.reactor.loop.run_callback(self._wake)

    def _wake(self) -> None:
        waiting, self.reader = self.reader, None
        if waiting is not None:
            waiting.switch()

    def expire(self) -> None:
        """It has no deadline of its own."""

    def interrupt(self, exc: Exception) -> bool:
        """Raise `exc` in who waits. To be called in the hub."""
        waiting, self.reader = self.reader, None
        if waiting is None:
            return False
        waiting.throw(exc)
        return True


class Hedges:
    """The hedges of one pool in one worker. `after`: seconds, 0: by the quantile of its own requests; `may`
    takes a retry, if there is one left; `release` gives a claim back.
    """

    def __init__(
        self, reactor: Reactor, after: float, may: Callable[[], bool], release: Callable[[str], None]
    ) -> None:
        self._reactor = reactor
        self._after = after
        self._may = may
        self._release = release
        self._times = Quantile()

    def send(
        self,
        backend: Backend,
        make: Callable[[Backend], ProxyRequest],
        claim: Callable[[tuple[str, ...]], Backend | None],
        timeout: tuple[float, float],
        tried: tuple[str, ...],
        tell: Callable[[str, float, bool, ProxyError | None], None],
    ) -> tuple[Backend, ProxyResponse, float]:
        """Send the request to `backend`, and to another one when that is slow. Returns who answered, the
        answer, and when that attempt began.

        `make` makes the request for a backend, `claim` gives one that is not among those named. `tell` is
        told of an attempt that did not win: whose, when it began, was it the hedge, and how it failed. Raises
        ProxyError, that of the first; the first one's claim is the caller's matter then.
        """
        race = Race(self._reactor)
        runners = [(self._run(race, backend, make, timeout), backend, perf_counter())]
        try:
            done = race.wait(self._after or self._times.value())
            if done is None:
                other = self._other(claim, (*tried, backend.id))
                if other is not None:
                    runners.append((self._run(race, other, make, timeout), other, perf_counter()))
                done = race.wait()
        except BaseException:
            runners[0][0].abandon()
            for runner, _, _ in runners[1:]:
                runner.end()
            raise
        assert done is not None
        self._times.add(perf_counter() - runners[0][2])
        if done.failure is not None:
            for runner, whose, began in runners[1:]:
                runner.end()
                tell(whose.id, began, True, _fault(runner))
            failure = _fault(runners[0][0])
            assert failure is not None
            raise failure
        winner = (backend, done.result, runners[0][2])
        for number, (runner, whose, began) in enumerate(runners):
            if runner is done:
                winner = (whose, done.result, began)
                continue
            runner.end()
            tell(whose.id, began, number > 0, _fault(runner))
        return winner

    def _other(
        self, claim: Callable[[tuple[str, ...]], Backend | None], named: tuple[str, ...]
    ) -> Backend | None:
        return claim(named) if self._may() else None

    def _run(
        self,
        race: Race,
        backend: Backend,
        make: Callable[[Backend], ProxyRequest],
        timeout: tuple[float, float],
    ) -> Runner:
        request = make(backend)
        send = request.upstream.send
        return race.run(
            lambda: send(request, stream=True, timeout=timeout), lambda: self._release(backend.id), request
        )


def _fault(runner: Runner) -> ProxyError | None:
    """How an attempt failed, if it has. Raises what is no fault of a backend's."""
    if runner.failure is None or isinstance(runner.failure, ProxyError):
        return runner.failure
    raise runner.failure
