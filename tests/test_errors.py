"""The tree of errors: who is to blame, what may be tried again, what the answer is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lb import errors
from lb.errors import ClientError, InternalError, ProxyError, UpstreamError
from lb.wsgi import REASONS


def leaves(base: type[ProxyError] = ProxyError) -> Iterator[type[ProxyError]]:
    """`base` and everything below it, in this module."""
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from leaves(child)


ALL = list(leaves())


@pytest.mark.parametrize("kind", ALL)
def test_each_knows_its_answer(kind: type[ProxyError]) -> None:
    assert kind.status in REASONS
    assert kind.code.isidentifier()
    assert kind.code.islower()


@pytest.mark.parametrize("kind", ALL)
def test_the_branch_says_who_is_to_blame(kind: type[ProxyError]) -> None:
    if issubclass(kind, ClientError):
        assert kind.source == "downstream"
        others = (errors.UnsupportedCoding, errors.VersionNotSupported, errors.MethodNotServed)
        assert 400 <= kind.status < 500 or kind in (*others, errors.LastHop)
    elif issubclass(kind, UpstreamError):
        assert kind.source == "upstream"
        assert kind.status in (502, 504)
    else:
        assert kind.source == "internal"


@pytest.mark.parametrize("kind", ALL)
def test_only_a_backends_failure_is_tried_again(kind: type[ProxyError]) -> None:
    if kind.source == "upstream":
        assert kind.safe_to_retry(idempotent=True)
        assert kind.safe_to_retry(idempotent=False) is not kind.sent
    else:
        assert not kind.safe_to_retry(idempotent=True)
        assert not kind.safe_to_retry(idempotent=False)


def test_nothing_was_sent_only_where_no_connection_came_about() -> None:
    assert {kind for kind in ALL if not kind.sent} == {
        errors.ConnectFailed,
        errors.ConnectTimeout,
        errors.TlsFailed,
    }


def test_codes_tell_leaves_apart() -> None:
    told: dict[str, list[str]] = {}
    for kind in ALL:
        told.setdefault(kind.code, []).append(kind.__name__)
    shared = {code: names for code, names in told.items() if len(names) > 1}
    assert shared == {
        "internal": ["ProxyError", "InternalError"],
        "bad_request": ["ClientError", "BadRequest"],
        "retry_budget": ["RetryBudgetSpent", "RetryBudgetSpentLate"],
    }


def test_one_word_catches_them_all() -> None:
    assert issubclass(ProxyError, errors.LbError)
    assert issubclass(errors.ConfigError, errors.LbError)
    assert issubclass(errors.StoreConflict, errors.StoreError)
    assert issubclass(errors.StoreUnavailable, errors.StoreError)
    assert not issubclass(errors.StoreError, ProxyError)
    assert issubclass(errors.NoBackend, InternalError)
