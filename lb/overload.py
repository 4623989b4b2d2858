"""Does a worker have more to do than it can, and what it does about that: says 503 to some, early.

What is refused costs a small part of what is served, so the rest is still answered in time; what is taken
and answered too late is work for nobody. Three things count: requests under way, resident memory, and how
late the event loop is, or whoever waits to be accepted. The last is a delay that every request has to bear,
whatever it is that takes the time; it must be there for `INTERVAL` on end, as in CoDel (RFC 8289): a burst is
not an overload.

`Overload` decides, without a clock, I/O or chance of its own: time, memory and chance arrive as arguments.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os

from lb.settings import LimitSettings

_LOG = logging.getLogger("lb")

LOOK = 0.1
"""Seconds between two looks."""
INTERVAL = 1.0
"""Seconds for which the event loop must have been late at each look."""
LOOKS = 3
"""Looks, at least, in that time."""
FEWER = 0.7
"""What becomes of the share that is taken with each look at which the loop is late."""
MORE = 0.02
"""What that share gains with each look at which it is not."""
LEAST = 0.02
"""The share that is taken in any case."""
RELIEF = 0.95
"""The share of `limits.memory` below which requests are taken again."""
TIDY = 1.0
"""Seconds between two attempts to give memory back to the system."""
STUCK = 30.0
"""Seconds beyond `limits.memory` after which a worker does better to leave to another one."""
QUIET = 5.0
"""Seconds without a refusal after which the log says that they are over."""

_MIB = 1 << 20


class Overload:
    """What one worker refuses. `strict` while it may refuse more than what is beyond `limits.requests`."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self.strict = False
        #: Is it beyond `limits.memory`? Since when?
        self.tight = False
        self._tight_since = 0.0
        self._tidied = 0.0
        #: The share of the requests that is taken while the loop is late.
        self.share = 1.0
        self._looked = 0.0
        self._late_since = 0.0
        self._late_looks = 0
        #: Seconds that the event loop was late at most, in the last whole second of looks.
        self.delay = 0.0
        self._latest = self._since = 0.0
        #: How many it has refused, and what of that the log has been told.
        self.refused = 0
        self._why = ""
        self._seen = 0
        self._episode = 0
        self._last_refusal = 0.0

    def refuses(self, under_way: int, chance: float) -> str:
        """Why the next request is refused; "" when it is taken. `chance` is anything from 0 to 1.

        Memory refuses nobody while nothing else is under way: what this would wait for is not going to come.
        """
        limits, why = self._limits, ""
        if under_way >= limits.requests:
            why = f"{under_way} requests under way"
        elif self.tight and under_way > 0:
            why = f"more than {limits.memory / _MIB:.4g} MiB of memory"
        elif chance >= self.share:
            why = f"more than {limits.delay:g} s late"
        if why:
            self.refused += 1
            self._why = why
        return why

    def look(self, now: float, resident: int, waiting: float = 0.0) -> None:
        """To be called every `LOOK` seconds; `now` by a clock that never jumps, `resident` in bytes,
        `waiting` the seconds that a connection waits to be accepted.
        """
        limits = self._limits
        if limits.memory:
            if not self.tight and resident > limits.memory:
                self.tight, self._tight_since = True, now
            elif self.tight and resident < limits.memory * RELIEF:
                self.tight = False
        late = max(now - self._looked - LOOK, 0.0) if self._looked else 0.0
        self._note(now, late)
        if limits.delay:
            self._judge(now, max(late, waiting) if self._looked else 0.0)
        self._looked = now
        self.strict = self.tight or self.share < 1.0
        self._tell(now)

    def _note(self, now: float, late: float) -> None:
        self._latest = max(self._latest, late)
        if now - self._since >= INTERVAL:
            self.delay, self._latest, self._since = self._latest, 0.0, now

    def _judge(self, now: float, late: float) -> None:
        if late < self._limits.delay:
            self._late_looks = 0
            self.share = min(1.0, self.share + MORE)
            return
        if not self._late_looks:
            self._late_since = self._looked
        self._late_looks += 1
        if self._late_looks >= LOOKS and now - self._late_since >= INTERVAL:
            self.share = max(LEAST, self.share * FEWER)

    def _tell(self, now: float) -> None:
        """Say in the log when it begins to refuse, and when it is over; not each time."""
        if self.refused > self._seen:
            if not self._episode:
                _LOG.warning("overloaded: %s; requests are refused", self._why)
            self._episode += self.refused - self._seen
            self._seen, self._last_refusal = self.refused, now
        elif self._episode and now - self._last_refusal >= QUIET:
            _LOG.warning("no longer overloaded; %d requests were refused", self._episode)
            self._episode = 0

    def tidy(self, now: float) -> bool:
        """Is it time to give memory back?"""
        if now - self._tidied < TIDY:
            return False
        self._tidied = now
        return True

    def stuck(self, now: float) -> bool:
        """Is it beyond `limits.memory` for so long that it does not come back by itself?"""
        return self.tight and now - self._tight_since >= STUCK


class Resident:
    """How much memory this process has, without opening a file each time: there may be no descriptor left."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._page = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> int:
        """Bytes that are resident."""
        return int(os.pread(self._fd, 128, 0).split()[1]) * self._page


def give_back() -> None:
    """Give memory that nobody uses back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others do it by themselves
    if trim is not None:
        trim(0)
