"""What may stand in `retry.on`."""

from __future__ import annotations

import pytest

from lb.config import read
from lb.config_retry import check_methods, check_retry_on, check_scope
from lb.errors import BadResponse, ConnectFailed, ConnectTimeout, ResponseTimeout, TlsFailed, UpstreamClosed
from lb.settings import RETRY_ON


def test_each_error_has_a_word_of_the_setting() -> None:
    kinds = (ConnectFailed, ConnectTimeout, TlsFailed, UpstreamClosed, ResponseTimeout, BadResponse)
    assert {kind.retry_on for kind in kinds} == set(RETRY_ON)


@pytest.mark.parametrize("words", [(), ("reset",), (*RETRY_ON, "502", "503", "504", "429")])
def test_words_and_statuses(words: tuple[str, ...]) -> None:
    assert check_retry_on(words) == words


def test_twice_is_once() -> None:
    assert check_retry_on(("503", "reset", "503")) == ("503", "reset")


@pytest.mark.parametrize("word", ["5xx", "200", "600", "50", "5030", "error", ""])
def test_anything_else_is_told(word: str) -> None:
    with pytest.raises(ValueError, match=r"is nothing to try again after; there are connect-failure, reset"):
        check_retry_on((word,))


def test_from_the_environment() -> None:
    loaded = read(None, {"LB_RETRY_ON": "connect-failure, 503", "LB_RETRY_BUDGET": "0.5"})
    assert loaded.settings is not None
    retry = loaded.settings.pools["default"].retry
    assert (retry.on, retry.budget) == (("connect-failure", "503"), 0.5)
    assert "LB_RETRY_ON" in read(None, {"LB_RETRY_ON": "503,later"}).problems[0]


@pytest.mark.parametrize("words", [("POST",), ("POST", "PATCH", "X-METHOD")])
def test_methods(words: tuple[str, ...]) -> None:
    assert check_methods(words) == words


@pytest.mark.parametrize("word", ["", "post", "PO ST", "P" * 33])
def test_what_is_no_method(word: str) -> None:
    with pytest.raises(ValueError, match="is no method"):
        check_methods((word,))


def test_scopes() -> None:
    words = ("ip", "header:X-User", "cookie:session")
    assert check_scope(words) == words
    for word in ("", "header:", "cookie:a b", "path", "IP"):
        with pytest.raises(ValueError, match="tells nobody apart"):
            check_scope((word,))
    with pytest.raises(ValueError, match="nothing would tell users apart"):
        check_scope(())
