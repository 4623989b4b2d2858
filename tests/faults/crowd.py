"""The load of an experiment: clients of two kinds, whose answers are checked."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from tests.support.clients import Load
from tests.support.processes import Balancer, PlainBackend
from tests.support.run import eventually

_CUT = re.compile(r"#\d+, (connecting|sending|waiting for the head|reading the body): ")


def stage(failure: str) -> str:
    """What a client did when its connection ended; "" when it got an answer, which was a wrong one."""
    found = _CUT.search(failure)
    return found[1] if found else ""


class Crowd:
    """Clients that keep their connections, and others with one for each request: those reach all workers."""

    def __init__(self, ports: Sequence[int], kept: int = 8, fresh: int = 4) -> None:
        self.clients = kept + fresh
        self.kept = Load(list(ports), kept, checked=True, pause=0.002)
        self.fresh = Load(list(ports), fresh, checked=True, pause=0.002, fresh=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Crowd]:
        """Send requests while the block runs."""
        with self.kept.running(), self.fresh.running():
            yield self

    @property
    def done(self) -> int:
        """Requests that were answered."""
        return self.kept.done + self.fresh.done

    @property
    def failures(self) -> list[str]:
        """What went wrong."""
        return self.kept.failures + self.fresh.failures

    def more(self, count: int) -> None:
        """Wait until so many more requests were answered, half of them on new connections."""
        done = self.kept.done + count // 2
        self.fresh.more(count // 2)
        eventually(lambda: self.kept.done >= done, "requests on kept connections")

    def only_cut(self) -> int:
        """How many requests failed, of which none may have got an answer that is not its own."""
        wrong = [failure for failure in self.failures if not stage(failure)]
        assert wrong == []
        return len(self.failures)

    def figures(self) -> str:
        """What was measured."""
        slowest = max(self.kept.slowest, self.fresh.slowest)
        return f"{self.done} requests, {len(self.failures)} failed, slowest {slowest:.3f} s"


def asked(backends: Sequence[PlainBackend]) -> list[int]:
    """How many requests of clients each of them was sent so far."""
    return [backend.counts().get("/", 0) for backend in backends]


def exact(ports: Sequence[int], backends: Sequence[PlainBackend], balancer: Balancer) -> None:
    """Nothing is claimed any more, and the next requests go round robin, whichever worker gets them."""
    balancer.idle()
    before = asked(backends)
    total = 50 * len(backends)
    failures = Load(list(ports), 8, total=total, checked=True).run().failures
    assert failures == [], failures
    gained = [now - then for now, then in zip(asked(backends), before, strict=True)]
    assert sum(gained) == total, gained
    assert max(gained) - min(gained) <= 1, gained
    balancer.idle()
