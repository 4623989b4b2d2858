"""Which algorithm the claims of one pool go by in one worker: the pool's own, or one that is tried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lb.algorithms.base import Request
from lb.model import Backend, Snapshot
from lb.state.picker import Picker
from lb.state.wishes import CANARY, PLAIN, WIDE, bare, mark_of, marked


class Choice:
    """The algorithms of a pool at work on its snapshot; `held`: connections, by backend, of this process.

    `zone`: where the worker stands, "" for nowhere in particular.
    """

    def __init__(self, snapshot: Snapshot, held: Mapping[str, int], zone: str = "") -> None:
        self._held = held
        self._zone = zone
        self._picker = Picker(snapshot.settings.algorithm, snapshot, held, zone=zone)
        self._canary: Picker | None = None
        self._share = self._due = 0.0
        #: While a canary is tried out: requests, failures and seconds that nobody has been told of yet, of
        #: the pool's own algorithm (False) and of the canary (True).
        self.tallies: dict[bool, tuple[int, int, float]] = {}
        #: Does an algorithm of the pool look at requests? Then claims come with one.
        self.asks = False
        #: Does it matter how long answers take, and what became of them? Then releases come with that.
        self.timed = False
        #: Is there more to a claim than who is excluded (see these two), or is a canary tried out?
        self.special = False
        self.update(snapshot)

    def update(self, snapshot: Snapshot) -> None:
        """Set up the algorithms of a snapshot."""
        settings = snapshot.settings
        if snapshot is not self._picker.snapshot:
            self._picker = Picker(settings.algorithm, snapshot, self._held, zone=self._zone)
        self._canary = None
        if settings.canary is not None:
            self._canary = Picker(settings.canary.algorithm, snapshot, self._held, zone=self._zone)
            self._share = settings.canary.share
        pickers = [self._picker] if self._canary is None else [self._picker, self._canary]
        self.asks = any(picker.asks for picker in pickers)
        self.timed = any(picker.timed for picker in pickers)
        self.special = self.asks or self.timed or self._canary is not None

    @property
    def zone(self) -> str:
        """The zone to whose backends claims go, while these may take them; "": to all of the pool."""
        return self._picker.zone

    def canary_is_next(self) -> bool:
        """Is the next claim the canary's? Every n-th is, so that the share is met exactly."""
        if self._canary is None:
            return False
        self._due += self._share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def tally(self, canary: bool, ok: bool, took: float) -> None:
        """What became of a request, for the comparison with a canary; `took`: seconds until its answer."""
        if self._canary is not None:
            requests, failures, seconds = self.tallies.get(canary, (0, 0, 0.0))
            self.tallies[canary] = (requests + 1, failures + (not ok), seconds + took)

    def wish(self, exclude: Sequence[str], request: Request | None, canary: bool, own: str) -> str:
        """What a claim asks for."""
        picker = self._picker
        if canary and self._canary is not None:
            return marked(CANARY, self._canary.wish(exclude, request, own))
        return picker.wish(exclude, request, own) if exclude or own or picker.ruled else PLAIN

    def wide(self, exclude: Sequence[str], canary: bool) -> str:
        """What a claim asks for that nobody of the own zone may take."""
        picker, mark = self.picker(canary)
        return marked(WIDE | mark, picker.wide(exclude))

    def wait_for(self, exclude: Sequence[str], request: Request | None, canary: bool, own: str) -> str:
        """What a claim asks for that nobody has room for so far: the next slot, in whatever zone."""
        return self.wide(exclude, canary) if self.zone else self.wish(exclude, request, canary, own)

    def last_resort(self, exclude: Sequence[str]) -> str:
        """What a claim asks for that nobody may take; "": there is nobody else."""
        return self._picker.last_resort(exclude)

    def picker(self, canary: bool) -> tuple[Picker, int]:
        """The algorithm of a claim, and the mark of its wish."""
        if canary and self._canary is not None:
            return self._canary, CANARY
        return self._picker, 0

    def may_wait(self, exclude: Sequence[str]) -> bool:
        """Is there a backend, none of `exclude`, that might have room later?"""
        return self._picker.may_wait(exclude)

    # While the store is away.

    def pick(self, wish: str) -> Backend | None:
        """The backend for `wish` by this worker's own view; None if there is none."""
        return self._picker.pick(bare(wish), mark_of(wish) & WIDE != 0)

    def released(self, name: str) -> None:
        """A connection to that backend was given back."""
        self._picker.released(name)

    def begin(self) -> None:
        """The store went away just now: what was known of an earlier time is of no use."""
        self._picker.forget_local()
