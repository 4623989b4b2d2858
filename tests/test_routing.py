"""Routes: by host first, then by the longest path prefix."""

from __future__ import annotations

from typing import Any

import pytest

from lb.errors import BadRequest
from lb.routing import Destination, Router, host_name, longest
from lb.settings import Route

ROUTES = (
    Route(pool="any"),
    Route(pool="api", path="/api"),
    Route(pool="v2", path="/api/v2/"),
    Route(pool="shop", host="Shop.example.com"),
    Route(pool="shop-img", host="shop.example.com", path="/img"),
    Route(pool="wild", host="*.example.com"),
    Route(pool="deep", host="*.deep.example.com"),
)


def pool_of(router: Router, host: str, path: str) -> str | None:
    """The pool that a request goes to."""
    found = router.match(host, path)
    return None if found is None else found.pool


@pytest.mark.parametrize(
    ("host", "path", "pool"),
    [
        ("other.org", "/", "any"),
        ("other.org", "/api", "api"),
        ("other.org", "/api/x", "api"),
        ("other.org", "/apix", "any"),
        ("other.org", "/api/v2", "v2"),
        ("other.org", "/api/v2/y", "v2"),
        ("other.org", "/api/v20", "api"),
        ("shop.example.com", "/", "shop"),
        ("SHOP.example.com:8443", "/img/a.png", "shop-img"),
        ("shop.example.com.", "/imgs", "shop"),
        ("a.example.com", "/", "wild"),
        ("a.b.example.com", "/", "wild"),
        ("x.deep.example.com", "/", "deep"),
        ("example.com", "/", "any"),
        ("", "/", "any"),
    ],
)
def test_match(host: str, path: str, pool: str) -> None:
    assert pool_of(Router(ROUTES, "default"), host, path) == pool


def test_nothing_matches() -> None:
    router = Router([Route(pool="a", host="a.org"), Route(pool="b", path="/b")], "default")
    assert router.match("b.org", "/") is None
    assert pool_of(router, "a.org", "/anything") == "a"


def test_a_host_without_the_path_falls_through_to_any_host() -> None:
    router = Router([Route(pool="a", host="a.org", path="/a"), Route(pool="b", path="/b")], "default")
    assert pool_of(router, "a.org", "/b") == "b"


def test_without_routes_everything_goes_to_one_pool() -> None:
    router = Router((), "default")
    assert router.only is not None
    assert router.only.pool == "default"
    assert pool_of(router, "x", "/y") == "default"
    assert Router(ROUTES, "default").only is None


def test_host_name() -> None:
    assert host_name("Example.COM:80") == "example.com"
    assert host_name("[::1]:8000") == "[::1]"
    assert host_name("[::1]") == "[::1]"


@pytest.mark.parametrize(
    ("path", "pool"),
    [
        ("/api/../admin", "admin"),
        ("/x/./../admin/y", "admin"),
        ("/../..", None),
        ("/api/..", None),
        ("/api/.x", "api"),
        ("//admin", "admin"),
        ("/api/..//admin//", "admin"),
        ("//", None),
    ],
)
def test_dot_segments_lead_where_a_backend_would_take_them(path: str, pool: str | None) -> None:
    router = Router([Route(pool="api", path="/api"), Route(pool="admin", path="/admin")], "default")
    assert pool_of(router, "h", path) == pool


@pytest.mark.parametrize("path", ["/api//../admin", "/api/x//../../admin", "/api//a/../../admin"])
def test_what_may_lead_to_either_of_two_routes_is_refused(path: str) -> None:
    """Does `..` undo the empty segment, or the one before it?"""
    router = Router([Route(pool="api", path="/api"), Route(pool="admin", path="/admin")], "default")
    with pytest.raises(BadRequest):
        router.match("h", path)
    assert pool_of(router, "h", "/api/v1/x//../y") == "api"
    assert pool_of(router, "h", "/api//../../admin") == "admin"


def test_a_route_may_be_written_with_percent_encoding() -> None:
    router = Router(
        [Route(pool="a", path="/a%20b/"), Route(pool="b", path="/c//./d", strip_prefix=True)], "default"
    )
    assert pool_of(router, "h", "/a b/c") == "a"
    assert pool_of(router, "h", "/c/d/e") == "b"
    stripping = router.match("h", "/c/d/e")
    target = "/c/%64/e"
    assert stripping is not None
    assert stripping.strip(target) == "/e"


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/a/b", "/"),
        ("/a/b/", "/"),
        ("/a/b/c?d=/a/b", "/c?d=/a/b"),
        ("/a/b//c%2Fd", "//c%2Fd"),
        ("/%61/b/c", "/c"),
        ("/a/b?x", "/?x"),
        ("/a/b/.c/..d/...", "/.c/..d/..."),
    ],
)
def test_a_prefix_is_stripped(target: str, wanted: str) -> None:
    route = Destination(Route(pool="p", path="/a/b", strip_prefix=True))
    assert not route.plain
    assert route.strip(target) == wanted


@pytest.mark.parametrize("target", ["/a%2Fb/c", "/a/b/../c", "/a/b/%2e%2e/c", "/a/x/../b/c"])
def test_what_cannot_be_taken_apart_is_refused(target: str) -> None:
    with pytest.raises(BadRequest):
        Destination(Route(pool="p", path="/a/b", strip_prefix=True)).strip(target)


def test_a_look_up_does_not_grow_with_the_routes() -> None:
    class Counting(dict[str, Destination]):
        asked = 0

        def get(self, *args: Any) -> Any:
            Counting.asked += 1
            return super().get(*args)

    table = Counting({f"/{number}": Destination(Route(pool="p")) for number in range(1000)})
    assert longest(table, "/none/of/them") is None
    assert Counting.asked == 4
