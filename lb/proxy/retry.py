"""When a request is worth another backend, and how long to wait before.

Rules of this module: no I/O, no clock; chance comes as an argument. What may be done at all (the method, what
was sent) is said by the errors (`lb.errors`); how many retries the fleet may have, by `lb.state.budget`.

Between two tries there is a pause with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): drawn
between 0 and a bound that doubles. There is none when nothing was sent: that backend has not had any work,
and another one is there.
"""

from __future__ import annotations

from lb.errors import ProxyError, RetryBudgetSpent, RetryBudgetSpentLate, UpstreamError
from lb.settings import RetrySettings


class Policy:
    """The retries of one pool. `deadline`: seconds that a request may take in all; 0: any time."""

    def __init__(self, settings: RetrySettings, deadline: float = 0.0) -> None:
        self.attempts = max(settings.attempts, 1)
        #: Answers after which another backend is tried.
        self.statuses = frozenset(int(word) for word in settings.on if word.isdigit())
        self._words = frozenset(settings.on)
        self._backoff, self._longest = settings.backoff, settings.backoff_max
        self._deadline = deadline

    def worth(self, failure: ProxyError, idempotent: bool) -> bool:
        """Is another try allowed after this failure, and wanted?"""
        return (
            isinstance(failure, UpstreamError)
            and failure.safe_to_retry(idempotent)
            and failure.retry_on in self._words
        )

    def pause(self, tries: int, chance: float) -> float:
        """Seconds to wait after so many tries, by `chance` (0 to 1)."""
        longest = min(self._backoff * 2.0 ** min(tries - 1, 30), self._longest)
        return chance * longest

    def in_time(self, elapsed: float, pause: float) -> bool:
        """Does a try that begins after `pause` begin within the request's time?"""
        return not self._deadline or elapsed + pause < self._deadline


def spent(failure: ProxyError) -> RetryBudgetSpent:
    """What to answer in place of `failure` when no retry is left: the same, with a code that says so."""
    kind = RetryBudgetSpentLate if failure.status == RetryBudgetSpentLate.status else RetryBudgetSpent
    return kind(f"{failure}; the retry budget is used up")
