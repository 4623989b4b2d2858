"""`lb status` on a real store."""

from __future__ import annotations

from pathlib import Path

from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from tests.cli.conftest import Lb

KEYS = {"id", "url", "weight", "state", "in_flight", "requests"}


def test_nothing_there_yet(lb: Lb, registry: Registry, store_dir: Path) -> None:
    assert lb("status", "--json").json == {
        "store": f"{store_dir}/store.sock",
        "health_daemon": None,
        "pools": {},
    }
    assert "no pools yet" in lb("status").out


def test_pools_and_backends(lb: Lb, registry: Registry) -> None:
    config = PoolConfig("least-connections", (BackendSpec("http://h:1", 2), BackendSpec("http://h:2")))
    registry.change("web", decide.declare(config))
    registry.change("empty", decide.declare(PoolConfig()))
    assert registry.hold_health("me", 60)
    result = lb("status", "--json").json
    assert result["health_daemon"] == "me"
    web = result["pools"]["web"]
    assert (web["algorithm"], web["version"]) == ("least-connections", 1)
    assert [backend["id"] for backend in web["backends"]] == ["h:1", "h:2"]
    assert set(web["backends"][0]) >= KEYS
    assert result["pools"]["empty"]["backends"] == []
    words = lb("status").out
    assert "health daemon  me" in words
    assert "web  least-connections, version 1" in words
    assert "no backends: add some with `lb backends add URL --pool empty`" in words


def test_a_panic_is_said(lb: Lb, registry: Registry) -> None:
    config = PoolConfig(backends=(BackendSpec("http://h:1"), BackendSpec("http://h:2")), panic_threshold=0.6)
    registry.change("web", decide.declare(config))
    assert lb("status", "--json").json["pools"]["web"]["mode"] == "normal"
    registry.change("web", decide.verdicts([("h:1", "down")]))
    assert "web  round-robin, version 2, PANIC: too few are healthy, all get requests" in lb("status").out
    assert lb("status", "--json").json["pools"]["web"]["mode"] == "panic"


def test_who_waits_is_counted(lb: Lb, registry: Registry) -> None:
    registry.change("web", decide.declare(PoolConfig(backends=(BackendSpec("http://h:1"),))))
    assert lb("status", "--json").json["pools"]["web"]["queued"] == 0
    assert "queued" not in lb("status").out
    registry.client.hset(PoolKeys("web").state, "_w", 3)  # as `claim` notes it
    assert lb("status", "--json").json["pools"]["web"]["queued"] == 3
    assert "web  round-robin, version 1, 3 queued" in lb("status").out


def test_a_trial_shows_both_side_by_side(lb: Lb, registry: Registry) -> None:
    registry.change("web", decide.declare(PoolConfig("random", (BackendSpec("http://h:1"),))))
    assert lb("status", "--json").json["pools"]["web"]["trial"] == []
    assert "compared" not in lb("status").out
    registry.change("web", decide.switch("least-time", 0.1))
    registry.add_trial("web", {False: (90, 0, 1.8), True: (10, 2, 0.15)})
    web = lb("status", "--json").json["pools"]["web"]
    assert web["canary"] == {"algorithm": "least-time", "share": 0.1}
    mine, its = web["trial"]
    assert mine == {"algorithm": "random", "requests": 90, "failures": 0, "seconds": 1.8, "mean": 0.02}
    assert its == {"algorithm": "least-time", "requests": 10, "failures": 2, "seconds": 0.15, "mean": 0.015}
    words = lb("status").out
    assert "web  random, version 2, least-time for 0.1 of the picks" in words
    _, head, *rows = words[words.index("web  compared") :].splitlines()
    assert head.split() == ["algorithm", "requests", "failures", "mean", "ms"]
    assert [row.split() for row in rows] == [
        ["random", "90", "0", "20.00"],
        ["least-time", "10", "2", "15.00"],
    ]
    registry.change("web", decide.switch("least-time", 0))
    assert "least-time" not in lb("status").out
