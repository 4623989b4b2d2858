"""What a claim asks the shared state for, by the algorithm of its pool, as a wish (`lb.state.wishes`)."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence

from lb.algorithms import DEFAULT_ALGORITHM, algorithm
from lb.algorithms.base import Algorithm, Chance, Request
from lb.algorithms.eligible import eligible, seen_from
from lb.algorithms.excluded import excluded
from lb.algorithms.local import LocalOrder
from lb.model import Backend, Snapshot
from lb.state.seen import View
from lb.state.wishes import LEAVES, PLAIN

_LOG = logging.getLogger("lb")

LAST_RESORT = "s"
"""The rule that lets backups have a request that stand by."""

OWN = "o"
"""What a rule begins with when the first candidate is the client's own backend."""

_CODES = {"first": "f", "least-load": "l", "least-time": "t"}


class Picker:
    """An algorithm at work on one snapshot of a pool, in one worker.

    `held` is the number of connections by backend that this process holds; it is read at each local pick.
    `zone`: where the worker stands, "" for nowhere in particular.
    """

    def __init__(
        self,
        name: str,
        snapshot: Snapshot,
        held: Mapping[str, int],
        chance: Chance = random.random,
        zone: str = "",
    ) -> None:
        self.name = name
        self.snapshot = snapshot
        self._view = seen_from(snapshot, zone)
        #: The zone whose backends it chooses from; "" while those are all of the pool's.
        self.zone = "" if self._view is snapshot else zone
        self._held = held
        self._chance = chance
        self._algorithm = self._made()
        rule = self._algorithm.rule
        #: Do claims name candidates?
        self.ruled = rule is not None
        #: Does the algorithm look at requests?
        self.asks = self._algorithm.asks
        #: Does it matter how long answers take?
        self.timed = rule == "least-time"
        self._code = _CODES.get(rule or "", "")
        if rule == "bounded":
            weights = sum(backend.weight for backend in self._algorithm.available)
            self._code = f"b{snapshot.settings.hash.balance / max(weights, 1):.9g}"
        self._whole = eligible(snapshot) if self.zone else self._algorithm.eligible
        self._standby = sorted(self._whole.standby)
        self._failing = False
        self._local: LocalOrder | None = None
        self._local_wide: LocalOrder | None = None

    def _made(self) -> Algorithm:
        """The algorithm; where this host does not have it, what the shared state does by turns."""
        try:
            return algorithm(self.name)(self._view)
        except Exception as exc:  # noqa: BLE001 - an algorithm may be anybody's
            _LOG.error("pool %s goes on by turns here: %s", self.snapshot.pool, exc)
            return algorithm(DEFAULT_ALGORITHM)(self._view)

    def may_wait(self, exclude: Sequence[str]) -> bool:
        """Is there anybody who might take a request that must not go to `exclude`, once there is room?"""
        names = self._whole.names
        return len(names) > len(exclude) or any(name not in exclude for name in names)

    def wish(self, exclude: Sequence[str], request: Request | None, own: str = "") -> str:
        """The wish of a claim that must not get a backend of `exclude`, and gets `own` if that is free."""
        without = "\n".join(exclude)
        named = []
        if self.ruled:
            named = [name for name in self._candidates(request) if name not in exclude]
        if own and own not in exclude:
            named = [own, *(name for name in named if name != own)]
            return f"{OWN}{self._code if named[1:] else ''}\t{chr(10).join(named)}\t{without}"
        if named:
            return f"{self._code}\t{chr(10).join(named)}\t{without}"
        return f"\t\t{without}" if exclude else PLAIN

    def wide(self, exclude: Sequence[str]) -> str:
        """The wish of a claim that nobody of the own zone may take: for whoever is next in the whole pool."""
        return "\t\t" + "\n".join(exclude) if exclude else PLAIN

    def goes_by(self, request: Request | None) -> str:
        """What of the request its algorithm goes by, for people."""
        if request is None:
            return ""
        try:
            return self._algorithm.goes_by(request)[:512]
        except Exception:  # noqa: BLE001 - an algorithm may be anybody's
            return ""

    def last_resort(self, exclude: Sequence[str]) -> str:
        """The wish of a claim for a request that all others have failed: for a backup that stands by, though
        nobody has found the others down yet. "" when there is none.
        """
        left = [name for name in self._standby if name not in exclude]
        return f"{LAST_RESORT}\t{chr(10).join(left)}\t{chr(10).join(exclude)}" if left else ""

    def _candidates(self, request: Request | None) -> Sequence[str]:
        try:
            # Who is no backend of the pool is no name to trust in a command, whoever wrote the algorithm.
            known = self.snapshot.backends
            return [name for name in self._algorithm.candidates(request, self._chance) if name in known]
        except Exception:  # noqa: BLE001 - an algorithm may be anybody's
            if not self._failing:
                self._failing = True
                _LOG.exception(
                    "algorithm %s failed: pool %s goes on by turns where it does",
                    self.name,
                    self.snapshot.pool,
                )
            return ()

    def view(self, wide: bool = False) -> View:
        """What this worker knows of who may take a request; `wide`: from all zones."""
        found = self._whole if wide else self._algorithm.eligible
        near = self._view if self.zone and not wide else None
        why = excluded(self.snapshot, found, near)
        return View(self.snapshot, found, sorted(found.names), why, self._held)

    # Without the shared state.

    @property
    def local(self) -> LocalOrder:
        """The order by which this worker picks alone."""
        if self._local is None:
            self._local = LocalOrder(self._view, self._held, self._algorithm.order)
        return self._local

    @property
    def local_wide(self) -> LocalOrder:
        """The same over all zones."""
        if not self.zone:
            return self.local
        if self._local_wide is None:
            self._local_wide = LocalOrder(self.snapshot, self._held, self._algorithm.order)
        return self._local_wide

    def forget_local(self) -> None:
        """Begin new local orders: what this worker held has changed since."""
        self._local = self._local_wide = None

    def released(self, name: str) -> None:
        """A connection to `name` was given back."""
        self.local.released(name)
        if self._local_wide is not None:
            self._local_wide.released(name)

    def pick(self, wish: str, wide: bool = False) -> Backend | None:
        """The backend for `wish` by this worker's own view, `wide`: from all zones; None if there is none."""
        order = self.local_wide if wide else self.local
        code, candidates, exclude = wish.split("\t") if wish else ("", "", "")
        if code == LEAVES:
            return None
        if code == LAST_RESORT:
            return self.local_wide.last_resort(exclude.split("\n"))
        names = candidates.split("\n") if candidates else []
        if code[:1] == OWN:
            own = self.snapshot.backends.get(names.pop(0))
            code = code[1:]
            if own is not None and own.keeps_sessions and not self._full(own):
                # Who takes nobody else is not in the order.
                if own.id not in self._view.backends:
                    order = self.local_wide
                return order.pick((), (own.id,)) if own.available else own
        return order.pick(exclude.split("\n") if exclude else (), names, first=code[:1] in ("f", "b"))

    def _full(self, backend: Backend) -> bool:
        return 0 < backend.max_connections <= self._held.get(backend.id, 0)
