"""When a request is worth another backend, and how long it waits."""

from __future__ import annotations

import random
from statistics import mean

import pytest

from lb.errors import (
    BadResponse,
    ClientGone,
    ConnectFailed,
    ConnectTimeout,
    NoBackend,
    ProxyError,
    ResponseTimeout,
    TlsFailed,
    UpstreamClosed,
)
from lb.proxy.retry import Policy, spent
from lb.settings import RetrySettings


@pytest.mark.parametrize(
    ("failure", "word"),
    [
        (ConnectFailed, "connect-failure"),
        (ConnectTimeout, "connect-failure"),
        (TlsFailed, "connect-failure"),
        (UpstreamClosed, "reset"),
        (ResponseTimeout, "timeout"),
        (BadResponse, "invalid-response"),
    ],
)
def test_only_what_is_named_is_tried_again(failure: type[ProxyError], word: str) -> None:
    default, only = Policy(RetrySettings()), Policy(RetrySettings(on=(word,)))
    others = tuple(one for one in RetrySettings().on if one != word)
    assert default.worth(failure(), True)
    assert only.worth(failure(), True)
    assert not Policy(RetrySettings(on=others)).worth(failure(), True)
    # What is not idempotent is tried again only when nothing was sent.
    assert default.worth(failure(), False) is not failure.sent


@pytest.mark.parametrize("failure", [ClientGone, NoBackend, ProxyError])
def test_what_no_backend_is_to_blame_for_is_not(failure: type[ProxyError]) -> None:
    assert not Policy(RetrySettings()).worth(failure(), True)


def test_statuses() -> None:
    assert Policy(RetrySettings()).statuses == frozenset()
    assert Policy(RetrySettings(on=("reset", "503", "429"))).statuses == {503, 429}


def test_pauses_have_full_jitter_and_a_bound() -> None:
    policy, chance = Policy(RetrySettings(backoff=0.1, backoff_max=0.5)), random.Random(1)
    for tries, longest in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (5000, 0.5)):
        pauses = [policy.pause(tries, chance.random()) for _ in range(2000)]
        assert 0 <= min(pauses) < 0.01 * longest < 0.99 * longest < max(pauses) <= longest
        # The mean of 2,000 even draws is within 5 % of the middle but for once in ten thousand runs; seeded.
        assert mean(pauses) == pytest.approx(longest / 2, rel=0.05)
    assert Policy(RetrySettings(backoff=0)).pause(5, 0.9) == 0


def test_a_try_begins_within_the_requests_time() -> None:
    policy = Policy(RetrySettings(), deadline=2.0)
    assert policy.in_time(1.8, 0.1)
    assert not policy.in_time(1.8, 0.2)
    assert Policy(RetrySettings()).in_time(1e6, 1e6)


def test_the_code_says_that_the_budget_was_spent() -> None:
    assert (spent(UpstreamClosed("x")).status, spent(UpstreamClosed("x")).code) == (502, "retry_budget")
    assert (spent(ResponseTimeout("x")).status, spent(ResponseTimeout("x")).code) == (504, "retry_budget")
    assert "no answer; the retry budget is used up" in str(spent(ResponseTimeout("no answer")))
