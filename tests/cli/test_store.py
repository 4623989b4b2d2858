"""Finding pools and backends by what people type."""

from __future__ import annotations

import pytest

from lb.cli.store import NotThere, find
from lb.model import Backend, PoolSettings, Snapshot
from lb.state.registry import Registry
from tests.cli.conftest import Lb

A = Backend("a", "http://host:80")
B = Backend("b", "http://other:81")
C = Backend("c", "http://other:81")
POOL = Snapshot("default", 1, PoolSettings(), {one.id: one for one in (A, B, C)})


@pytest.mark.parametrize(("name", "found"), [("a", A), ("http://host", A), ("http://HOST:80/", A), ("b", B)])
def test_by_id_or_url(name: str, found: Backend) -> None:
    assert find(POOL, name) == found


def test_what_is_not_there() -> None:
    with pytest.raises(NotThere, match=r"there is no backend 'd' in pool 'default'"):
        find(POOL, "d")
    with pytest.raises(NotThere, match="several backends of pool 'default': name one of b, c"):
        find(POOL, "http://other:81")


def test_pools(lb: Lb, registry: Registry) -> None:
    assert lb("backends", "add", "http://h:1", "--pool", "web").err == (
        "lb: there is no pool 'web'; there are default\n"
    )
    # `default` is configured, if by nobody else then by default: it may be filled before its first start.
    assert lb("backends", "add", "http://h:1").code == 0
    assert lb("algorithm", "get", "--pool", "defualt").err == (
        "lb: there is no pool 'defualt'; did you mean 'default'?\n"
    )
