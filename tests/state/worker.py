"""A worker process for tests: a `Fleet`, with greenlets or threads, that does as it is told on its input.

    python -m tests.state.worker green|threads URL NAME,NAME…

Reads one JSON object a line, {"do": "claim", "count": 3}, and answers each with one.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "green":
    from gevent import monkey

    monkey.patch_all()

import json
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

from lb.model import Backend, Snapshot
from lb.settings import BackendSpec, PoolConfig
from lb.state.fleet import Fleet, Runtime

POOL = "p"


class Worker:
    """Answers the orders."""

    def __init__(self, kind: str, url: str, names: Sequence[str]) -> None:
        runtime: Runtime
        if kind == "green":
            from gevent import get_hub

            from lb.state.green import GreenRuntime

            runtime = GreenRuntime(get_hub())
        else:
            from lb.state.threads import ThreadRuntime

            runtime = ThreadRuntime()
        self.updates: list[Snapshot] = []
        config = PoolConfig(backends=tuple(BackendSpec(f"http://{name}") for name in names))
        self.fleet = Fleet(url, {POOL: config}, f"worker:{os.getpid()}", runtime, self.updates.append)
        self.fleet.start()
        self.source = self.fleet.claims_of(POOL)

    def claim(self, count: int = 1, exclude: Sequence[str] = ()) -> list[str | None]:
        """That many claims at once."""
        found: list[str | None] = []

        def one() -> None:
            backend: Backend | None = self.source.claim(tuple(exclude))
            found.append(backend.id if backend else None)

        threads = [threading.Thread(target=one) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def release(self, names: Sequence[str]) -> None:
        for name in names:
            self.source.release(name)

    def cycle(self, clients: int, count: int) -> dict[str, int]:
        """Clients that claim and give back in a loop: how often each backend was taken."""
        counts: dict[str, int] = {}

        def client() -> None:
            for _ in range(count):
                backend = self.source.claim()
                name = backend.id if backend else ""
                counts[name] = counts.get(name, 0) + 1
                if name:
                    self.source.release(name)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return counts

    def info(self) -> dict[str, Any]:
        claims = self.fleet.claims[POOL]
        return {
            "degraded": self.fleet.degraded,
            "degraded_count": self.fleet.degraded_count,
            "shared": claims.shared and claims.ready,
            "held": claims.held.counts,
            "version": claims.snapshot.version,
            "backends": sorted(claims.snapshot.backends),
            "states": {name: backend.state for name, backend in claims.snapshot.backends.items()},
            "calls": claims.calls,
            "picks": claims.picks,
            "local_picks": claims.local_picks,
            "updates": len(self.updates),
        }

    def stop(self) -> None:
        self.fleet.stop()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    worker = Worker(sys.argv[1], sys.argv[2], [name for name in sys.argv[3].split(",") if name])
    lines: Any = sys.stdin
    if sys.argv[1] == "green":
        from gevent.fileobject import FileObjectThread

        lines = FileObjectThread(sys.stdin.fileno(), "r", closefd=False)
    for line in lines:
        order = json.loads(line)
        answer = getattr(worker, order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
