"""The cookie of a sticky session: what is read from a request, and what an answer is given."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lb.model import Backend, PoolSettings, Snapshot
from lb.settings import StickySettings
from lb.sticky import MOST, Sticky, sticky_pools

NOW = 1_800_000_000.0
SECRET = b"s" * 32
A, B = Backend("10.0.0.1:80", "http://10.0.0.1:80"), Backend("b", "http://b:80")


def made(
    pool: str = "p", secret: bytes = SECRET, backends: tuple[Backend, ...] = (A, B), **how: Any
) -> Sticky:
    sticky = Sticky(pool, StickySettings(**{"cookie": "lb"} | how))
    sticky.update(snapshot(*backends), secret)
    return sticky


def snapshot(*backends: Backend) -> Snapshot:
    return Snapshot("p", 1, PoolSettings(), {one.id: one for one in backends})


def value(sticky: Sticky, backend: Backend = A, now: float = NOW) -> str:
    """The value of the cookie that binds to `backend`."""
    found = re.match(rb"Set-Cookie: lb=([^;]+)", sticky.line(backend.id, False, now))
    assert found
    return found[1].decode()


def head(*fields: str) -> bytes:
    return "\r\n".join(["GET /?lb=1 HTTP/1.1", "Host: lb", *fields, "", ""]).encode()


def bound(sticky: Sticky, cookie: str, now: float = NOW) -> str:
    return sticky.read(head(f"Cookie: {cookie}"), False, now)[0].backend


def test_a_client_comes_back() -> None:
    sticky = made()
    bond, kept = sticky.read(head(), False, NOW)
    assert (bond.backend, kept) == ("", head())
    first = bond.mark(b"X: 1\r\n", A)
    assert re.fullmatch(
        rb"X: 1\r\nSet-Cookie: lb=[\w-]{22}\.6b49d200\.[\w-]{16}; Path=/; HttpOnly; SameSite=Lax\r\n", first
    )
    bond, kept = sticky.read(head(f"Cookie: lb={value(sticky)}"), False, NOW + 1e7)
    assert (bond.backend, kept) == (A.id, head())
    assert bond.mark(b"X: 1\r\n", A) == b"X: 1\r\n"
    # Another one answered: it is the client's from now on.
    assert bond.mark(b"", B) == sticky.line("b", False, NOW + 1e7) != b""


def test_the_value_tells_nothing_of_the_backend() -> None:
    first, second = value(made()), value(made(secret=b"t" * 32))
    assert "10.0" not in first
    assert first != second
    assert value(made("q")) != first
    assert value(made(), B) != first


def test_all_who_know_the_secret_agree() -> None:
    assert bound(made(), f"lb={value(made())}") == A.id
    assert bound(made(backends=(B, A)), f"lb={value(made())}") == A.id


def test_another_secret_ends_all_sessions() -> None:
    sticky = made()
    before = value(sticky)
    sticky.update(snapshot(A, B), b"t" * 32)
    assert bound(sticky, f"lb={before}") == ""
    assert value(sticky) == value(made(secret=b"t" * 32))
    # One that is known is not forgotten.
    sticky.update(snapshot(A), b"")
    assert value(sticky) == value(made(secret=b"t" * 32))


@pytest.mark.parametrize("pool", ["p", "q"])
def test_a_configured_secret_counts(pool: str) -> None:
    sticky = Sticky(pool, StickySettings(cookie="lb", secret="configured-secret"))
    sticky.update(snapshot(A), b"")
    mine = value(sticky)
    sticky.update(snapshot(A), SECRET)
    assert value(sticky) == mine


def test_what_is_not_ours_says_nothing() -> None:
    sticky = made()
    good = value(sticky)
    token, date, signature = good.split(".")
    other = value(sticky, B).split(".")
    for bad in (
        "",
        A.id,
        "..",
        token,
        f"{token}.{date}",
        f"{token}.{date}.",
        f"{token}.{int(date, 16) + 1:x}.{signature}",
        f"{token}.0x{date}.{signature}",
        f"{token}..{signature}",
        f"{other[0]}.{date}.{signature}",
        f"{token}.{date}.{signature[:-1]}",
        f'"{good}"',
        good.upper(),
        f"{good}.x",
        "\xff\x00",
        value(made(secret=b"t" * 32)),
        value(made("q")),
    ):
        assert bound(sticky, f"lb={bad}") == "", bad
    assert bound(sticky, f"LB={good}") == ""
    assert bound(sticky, f"lb={good}") == A.id


def test_the_first_good_one_counts_and_few_are_looked_at() -> None:
    sticky = made()
    good = f"lb={value(sticky, B)}"
    assert bound(sticky, f"lb=x; {good}; lb={value(sticky)}") == "b"
    assert bound(sticky, "; ".join(["lb=x"] * (MOST - 1) + [good])) == "b"
    assert bound(sticky, "; ".join(["lb=x"] * MOST + [good])) == ""


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        (("Cookie: lb=x",), ()),
        (("cookie:lb=x", "X: 1"), ("X: 1",)),
        (("Cookie: lb=x;",), ()),
        (("Cookie: lb=x; lb=y",), ()),
        (("Cookie: lb = x ; a=1",), ("Cookie: a=1",)),
        (('Cookie: a=1; lb=x; b="2";c= 3 ',), ('Cookie: a=1; b="2";c= 3 ',)),
        (("COOKIE:a=1;lb=x",), ("COOKIE:a=1",)),
        (("Cookie: a=1", "Y: lb=x", "Cookie: lb=y; b=2"), ("Cookie: a=1", "Y: lb=x", "Cookie: b=2")),
        (("Cookie: alb=1; lb2=2; Lb=3; lb; x=lb=y",), ("Cookie: alb=1; lb2=2; Lb=3; lb; x=lb=y",)),
        (("Cookie: a=\xe4\xff; lb=x", "X-Cookie: lb=x"), ("Cookie: a=\xe4\xff", "X-Cookie: lb=x")),
    ],
)
def test_the_backend_sees_all_other_cookies_as_they_came(
    fields: tuple[str, ...], left: tuple[str, ...]
) -> None:
    assert made().read(head(*fields), False, NOW)[1] == head(*left)


def test_a_backend_that_is_gone_or_down_is_replaced() -> None:
    sticky = made()
    cookie = f"lb={value(sticky)}"
    for state, serves in (("up", True), ("unknown", True), ("down", False), ("checking", False)):
        sticky.update(snapshot(Backend(A.id, A.url, health=state), B), SECRET)  # type: ignore[arg-type]
        assert bound(sticky, cookie) == (A.id if serves else "")
    sticky.update(snapshot(B), SECRET)
    assert bound(sticky, cookie) == ""
    assert sticky.line(A.id, False, NOW) == b""
    sticky.update(snapshot(A, B), SECRET)
    assert bound(sticky, cookie) == A.id


@pytest.mark.parametrize("away", [{"admin": "drain"}, {"weight": 0}])
def test_a_drained_backend_keeps_its_sessions_but_does_not_prolong_them(away: dict[str, Any]) -> None:
    sticky = made(ttl=100)
    cookie = f"Cookie: lb={value(sticky)}"
    drained = Backend(A.id, A.url, **away)
    sticky.update(snapshot(drained, B), SECRET)
    bond, _ = sticky.read(head(cookie), False, NOW + 90)
    assert bond.backend == A.id
    assert bond.mark(b"", drained) == b""
    assert bond.mark(b"", A) != b""


def test_a_session_ends_on_our_word() -> None:
    sticky = made(ttl=100)
    cookie = f"lb={value(sticky)}"
    assert b"; Max-Age=100;" in sticky.line("b", False, NOW)
    for age, backend, renewed in ((-5, A.id, False), (50, A.id, False), (51, A.id, True), (100, A.id, True)):
        bond, _ = sticky.read(head(f"Cookie: {cookie}"), False, NOW + age)
        assert bond.backend == backend
        assert bond.mark(b"", A) == (sticky.line(A.id, False, NOW + age) if renewed else b"")
    assert bound(sticky, cookie, NOW + 101) == ""
    # A new lifetime counts for cookies that are out already.
    assert bound(made(ttl=200), cookie, NOW + 101) == A.id
    assert bound(made(), cookie, NOW + 1e9) == A.id


@pytest.mark.parametrize(
    ("how", "http", "https"),
    [
        ({}, "Path=/; HttpOnly; SameSite=Lax", "Path=/; HttpOnly; Secure; SameSite=Lax"),
        ({"same_site": "", "http_only": False, "path": "/shop"}, "Path=/shop", "Path=/shop; Secure"),
        ({"same_site": "none"}, "Path=/; HttpOnly", "Path=/; HttpOnly; Secure; SameSite=None"),
        (
            {"same_site": "strict", "secure": "always", "ttl": 60},
            "Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Strict",
            "Path=/; Max-Age=60; HttpOnly; Secure; SameSite=Strict",
        ),
        ({"secure": "never"}, "Path=/; HttpOnly; SameSite=Lax", "Path=/; HttpOnly; SameSite=Lax"),
    ],
)
def test_attributes(how: dict[str, Any], http: str, https: str) -> None:
    sticky = made(**how)
    for secure, wanted in ((False, http), (True, https)):
        bond, _ = sticky.read(head(), secure, NOW)
        assert bond.mark(b"", A).decode().partition("; ")[2] == f"{wanted}\r\n"


def test_a_cookie_of_our_name_is_ours() -> None:
    """What a backend sets under the name goes, whether we set one or not; nothing else does."""
    sticky = made(cookie="a.b")
    mine = b"Set-Cookie: a.b=1; Path=/x\r\nset-cookie:a.b=2\r\nSET-COOKIE: \ta.b =3\r\n"
    theirs = b"Set-Cookie: axb=1; a.b=2\r\nX-Set-Cookie: a.b=1\r\nSet-Cookie: A.B=1\r\nX: a.b\r\n"
    theirs += b"Set-Cookie: a.bc=1\r\n"
    assert sticky.without_own(mine + theirs + mine) == theirs
    bond, _ = sticky.read(head(), False, NOW)
    assert bond.mark(mine + theirs, A) == theirs + sticky.line(A.id, False, NOW)


def test_without_a_secret_nobody_is_bound_and_nothing_is_replaced() -> None:
    sticky = made(secret=b"")
    bond, left = sticky.read(head(f"Cookie: lb={value(made())}"), False, NOW)
    assert (bond.backend, left) == ("", head())
    assert bond.mark(b"X: 1\r\n", A) == b"X: 1\r\n"
    sticky.update(snapshot(A), SECRET)
    assert bound(sticky, f"lb={value(made())}") == A.id


def test_only_pools_with_a_cookie_have_sessions() -> None:
    assert list(sticky_pools({"a": StickySettings(), "b": StickySettings(cookie="x")})) == ["b"]
