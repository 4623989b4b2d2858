"""Routes: by host first, then by the longest path prefix."""

from __future__ import annotations

import pytest

from lb.routing import Router, host_name
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
    assert Router(ROUTES, "default").match(host, path) == pool


def test_nothing_matches() -> None:
    router = Router([Route(pool="a", host="a.org"), Route(pool="b", path="/b")], "default")
    assert router.match("b.org", "/") is None
    assert router.match("a.org", "/anything") == "a"


def test_a_host_without_the_path_falls_through_to_any_host() -> None:
    router = Router([Route(pool="a", host="a.org", path="/a"), Route(pool="b", path="/b")], "default")
    assert router.match("a.org", "/b") == "b"


def test_without_routes_everything_goes_to_one_pool() -> None:
    router = Router((), "default")
    assert router.only == "default"
    assert router.match("x", "/y") == "default"
    assert Router(ROUTES, "default").only is None


def test_host_name() -> None:
    assert host_name("Example.COM:80") == "example.com"
    assert host_name("[::1]:8000") == "[::1]"
    assert host_name("[::1]") == "[::1]"
