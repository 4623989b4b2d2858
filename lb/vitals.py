"""What a worker tells of itself: gathered once a beat, and when somebody asks it, and written to its place on
the scoreboard. No request pays for it: what is told is counted and held elsewhere already.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from math import nan
from time import monotonic
from typing import NamedTuple

from lb.accesslog import AccessLog
from lb.scoreboard import Figures, Place, Totals
from lb.state.budget import Budget
from lb.state.fleet import Fleet, Runtime
from lb.state.lease import BEAT

_LOG = logging.getLogger("lb")


class Load(NamedTuple):
    """What a worker class knows; NaN where it does not: open `connections` of clients, requests `in_flight`,
    how many were `refused` for overload so far, and seconds that the event loop was late.
    """

    connections: float = nan
    in_flight: float = nan
    refused: int = 0
    delay: float = nan


class Vitals:
    """One worker's. `place` is where they are written."""

    def __init__(
        self,
        place: Place,
        fleet: Fleet,
        log: AccessLog,
        budgets: Mapping[str, Budget],
        runtime: Runtime,
    ) -> None:
        self._place = place
        self._fleet = fleet
        self._log = log
        self._budgets = budgets
        self._runtime = runtime
        self._load: Callable[[], Load] = Load
        self._resident: Callable[[], float] = lambda: nan
        self._wake = runtime.event()
        self._stopping = False
        # Under threads a scrape and the beat meet: the later one must not write what the earlier one saw.
        self._writing = threading.Lock()

    def measure(self, load: Callable[[], Load], resident: Callable[[], float]) -> None:
        """What the worker class knows from now on, and how many bytes of memory there are."""
        self._load, self._resident = load, resident

    def start(self) -> None:
        """Tell at once, and once a beat from now on."""
        self.tell()
        self._runtime.spawn(self._run)

    def stop(self) -> None:
        """Tell a last time, and leave."""
        with self._writing:
            self._stopping = True
            self._write()
            self._place.leave()
        self._wake.set()

    def tell(self) -> None:
        """Write how things are now."""
        with self._writing:
            if not self._stopping:
                self._write()

    def read(self) -> Totals:
        """What all workers of this gunicorn tell, this one of this very moment."""
        self.tell()
        return self._place.board.read(monotonic())

    def _run(self) -> None:
        while not self._wake.wait(BEAT):
            try:
                self.tell()
            except Exception:  # noqa: BLE001 - this loop must not end
                _LOG.exception("what this worker knows of itself could not be told; going on")

    def _write(self) -> None:
        load = self._load()
        self._place.write(
            Figures(
                shared=not self._fleet.degraded,
                losses=self._fleet.degraded_count,
                refused=load.refused,
                lost_lines=self._log.dropped,
                retries={name: budget.refused for name, budget in self._budgets.items()},
                connections=load.connections,
                in_flight=load.in_flight,
                resident=self._resident(),
                delay=load.delay,
            ),
            monotonic(),
        )
