"""What can be asked and changed, on a real store."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from lb.model import Backend, OutlierPolicy, Snapshot
from lb.settings import Settings
from lb.state import decide, outlier
from lb.state.decide import Change
from lb.state.registry import Registry
from tests.control.conftest import Asker

LIST, ONE, ALGORITHM = "/v1/pools/web/backends", "/v1/pools/web/backends/one", "/v1/pools/web/algorithm"
NEW = {"url": "http://127.0.0.1:9003", "weight": 2}


def test_the_pools(ask: Asker) -> None:
    common = {"state": "unknown", "source": "file", "admin": "ready", "health": "unknown", "zone": ""}
    counts = {"in_flight": 0, "requests": 0, "ejected_until": 0.0, "ejections": 0, "ejection_reason": ""}
    told = ask("/v1/pools")
    assert told.status == 200
    pool = told.json["pools"]["web"]
    assert pool.pop("settings")["health"]["path"] == "/"
    assert pool == {
        "algorithm": "least-connections",
        "canary": None,
        "trial": [],
        "version": 1,
        "exact": True,
        "queued": 0,
        "backends": [
            {"id": "b:2+tls", "url": "https://b:2", "weight": 1, "max_connections": 0, **common, **counts},
            {"id": "one", "url": "http://a:1", "weight": 3, "max_connections": 7, **common, **counts},
        ],
    }
    assert ask("/v1/pools/web").json == {**pool, "settings": ask("/v1/pools/web").json["settings"]}
    assert ask(LIST).json == {"version": 1, "exact": True, "backends": pool["backends"]}
    assert ask(ONE).json == pool["backends"][1]


def test_a_pool_of_another_balancer(ask: Asker, registry: Registry) -> None:
    registry.change("theirs", decide.add(Backend("x", "http://127.0.0.1:7")))
    assert set(ask("/v1/pools").json["pools"]) == {"web", "theirs"}
    assert ask("/v1/pools/theirs/backends/x").status == 200
    assert ask("/v1/pools/theirs/backends/x", "DELETE").status == 204


def test_what_is_not_there(ask: Asker) -> None:
    for path in ("/v1/pools/wob", "/v1/pools/wob/backends", "/v1/pools/wob/algorithm", f"{LIST}/two"):
        told = ask(path)
        assert told.status == 404
    assert ask("/v1/pools/wob").json["detail"] == "there is no pool 'wob'; did you mean 'web'?"
    assert ask("/v1/pools/wob/backends", "POST", NEW).status == 404
    assert ask("/v1/pools/wob/algorithm", "PUT", {"algorithm": "random"}).status == 404
    assert ask(f"{LIST}/two", "PATCH", {"weight": 1}).status == 404
    assert ask(f"{LIST}/two", "PATCH", {"report": {"cpu": 0.5}}).status == 404
    assert ask(f"{LIST}/two", "DELETE").status == 404
    assert ask("/v1/pools").json["pools"].keys() == {"web"}


def test_add_and_remove(ask: Asker, registry: Registry) -> None:
    told = ask(LIST, "POST", NEW)
    assert told.status == 201
    assert told.fields["location"] == f"{LIST}/127.0.0.1%3A9003"
    assert (told.json["id"], told.json["weight"], told.json["source"]) == ("127.0.0.1:9003", 2, "api")
    assert ask(f"{LIST}/127.0.0.1:9003").json == told.json
    version = registry.version("web")
    again = ask(LIST, "POST", NEW)
    assert (again.status, again.json) == (200, told.json)
    assert registry.version("web") == version
    gone = ask(f"{LIST}/127.0.0.1:9003", "DELETE")
    assert (gone.status, gone.body) == (204, b"")
    assert "content-type" not in gone.fields
    assert ask(f"{LIST}/127.0.0.1:9003").status == 404


def test_a_name_that_is_taken(ask: Asker) -> None:
    assert ask(LIST, "POST", NEW).status == 201
    assert ask(LIST, "POST", {**NEW, "url": "http://127.0.0.1:9004", "id": "127.0.0.1:9003"}).status == 409
    assert ask(LIST, "POST", {**NEW, "weight": 3}).status == 409
    assert ask(f"{LIST}/127.0.0.1:9003").json["weight"] == 2


def test_addresses_that_may_not_be_registered(ask: Asker, settings: Settings) -> None:
    for url in ("http://169.254.169.254:80", "http://192.0.2.1:80", "http+unix://%2Frun%2Fx.sock"):
        told = ask(LIST, "POST", {"url": url})
        assert told.status == 403
        assert told.json["errors"][0]["pointer"] == "#/url"
    assert len(ask(LIST).json["backends"]) == 2
    wide = Asker(msgspec.structs.replace(settings, allowed_backends=("192.0.2.0/24",)), ask.control.service)
    assert wide(LIST, "POST", {"url": "http://192.0.2.1:80"}).status == 201
    assert wide(LIST, "POST", NEW).status == 403


def test_change(ask: Asker) -> None:
    told = ask(ONE, "PATCH", {"weight": 0, "max_connections": 5, "admin": "drain"})
    assert told.status == 200
    assert (told.json["weight"], told.json["max_connections"], told.json["state"]) == (0, 5, "drain")
    assert "share" not in told.json
    assert ask(ONE, "PATCH", {"admin": "ready"}).json["state"] == "unknown"
    assert ask(ONE).json["weight"] == 0


def ejects(snapshot: Snapshot) -> Change:
    """Let the pool eject backends."""
    return Change(settings=replace(snapshot.settings, outlier=OutlierPolicy(enabled=True)))


def test_ready_ends_an_ejection(ask: Asker, registry: Registry) -> None:
    registry.change("web", ejects)
    registry.change("web", outlier.eject("one", "5 failures in a row", registry.now()))
    told = ask(ONE).json
    assert (told["state"], told["ejections"], told["ejection_reason"]) == (
        "ejected",
        1,
        "5 failures in a row",
    )
    assert 25 < told["ejected_until"] - registry.now() <= 30
    assert ask(ONE, "PATCH", {"weight": 2}).json["state"] == "ejected"
    told = ask(ONE, "PATCH", {"admin": "ready"}).json
    assert (told["state"], told["ejected_until"]) == ("unknown", 0.0)


def test_ready_forgets_that_it_was_down(ask: Asker, registry: Registry) -> None:
    registry.change("web", decide.verdicts([("one", "down")]))
    assert ask(ONE, "PATCH", {"weight": 2}).json["state"] == "down"
    assert ask(ONE, "PATCH", {"admin": "ready"}).json["state"] == "unknown"
    registry.change("web", decide.verdicts([("one", "down")]))
    assert registry.hold_health("somebody", 10)
    assert ask(ONE, "PATCH", {"admin": "ready"}).json["state"] == "checking"


def test_a_report(ask: Asker) -> None:
    assert ask(ONE, "PATCH", {"report": {"cpu": 0.75, "memory": 0.1}}).json["share"] == pytest.approx(0.25)
    told = ask(ONE, "PATCH", {"weight": 8, "report": {"running": 5, "capacity": 10}})
    assert told.json["weight"] == 8
    assert 0.25 <= told.json["share"] < 0.5


def test_the_algorithm(ask: Asker, registry: Registry) -> None:
    assert ask(ALGORITHM).json == {"algorithm": "least-connections", "canary": None, "exact": True}
    told = ask(ALGORITHM, "PUT", {"algorithm": "random"})
    assert (told.status, told.json["algorithm"]) == (200, "random")
    trial = {"algorithm": "least-time", "share": 0.25}
    told = ask(ALGORITHM, "PUT", {"algorithm": "round-robin", "canary": trial})
    assert told.json == ask(ALGORITHM).json == {"algorithm": "round-robin", "canary": trial, "exact": True}
    registry.add_trial("web", {False: (4, 1, 2.0), True: (1, 0, 0.5)})
    compared = ask("/v1/pools/web").json["trial"]
    assert compared == [
        {"algorithm": "round-robin", "requests": 4, "failures": 1, "seconds": 2.0, "mean": 0.5},
        {"algorithm": "least-time", "requests": 1, "failures": 0, "seconds": 0.5, "mean": 0.5},
    ]
    version = registry.version("web")
    assert ask(ALGORITHM, "PUT", {"algorithm": "round-robin", "canary": trial}).status == 200
    assert registry.version("web") == version
    told = ask(ALGORITHM, "PUT", {"algorithm": "round-robin", "canary": None})
    assert (told.json["canary"], ask("/v1/pools/web").json["trial"]) == (None, [])


def test_an_id_that_has_to_be_encoded(ask: Asker, registry: Registry) -> None:
    """A server decodes a path once before it hands it over."""
    name = "%2Frun%2Fx.sock"
    registry.change("web", decide.add(Backend(name, f"http+unix://{name}")))
    assert ask(f"{LIST}/{name}").json["id"] == name
