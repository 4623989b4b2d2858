"""`lb backends …` on a real store."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from msgspec.structs import replace

from lb.model import Backend, OutlierPolicy, PoolSettings, Snapshot
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide, outlier
from lb.state.decide import Change
from lb.state.lease import WorkerLease
from lb.state.registry import Registry
from tests.cli.conftest import Lb


def listed(lb: Lb, pool: str = "default") -> dict[str, dict[str, Any]]:
    """The backends of a pool by id, as `lb backends list` tells."""
    backends = lb("backends", "list", "--json").json["pools"][pool]["backends"]
    return {backend["id"]: backend for backend in backends}


def test_add_list_remove(lb: Lb, registry: Registry) -> None:
    result = lb("backends", "add", "http://127.0.0.1:9001")
    assert result == (0, "127.0.0.1:9001 is in pool default: unknown, gets requests\n", "")
    lb("backends", "add", "http://h:2", "--weight", "3", "--max-connections", "10", "--id", "two")
    found = listed(lb)
    assert found["127.0.0.1:9001"] == {
        "id": "127.0.0.1:9001",
        "url": "http://127.0.0.1:9001",
        "weight": 1,
        "state": "unknown",
        "in_flight": 0,
        "requests": 0,
        "max_connections": 0,
        "source": "api",
        "admin": "ready",
        "health": "unknown",
        "backup": False,
        "zone": "",
        "ejected_until": 0.0,
        "ejections": 0,
        "ejection_reason": "",
    }
    assert (found["two"]["weight"], found["two"]["max_connections"]) == (3, 10)
    table = lb("backends", "list").out.splitlines()
    assert table[0] == "default  round-robin, version 2"
    assert table[1].split()[:2] == ["backend", "state"]
    assert table[3].split() == ["two", "unknown", "3", "0", "0", "10", "api", "http://h:2"]
    assert lb("backends", "remove", "http://h:2").out == "two is no longer in pool default\n"
    assert list(listed(lb)) == ["127.0.0.1:9001"]
    assert lb("backends", "remove", "two").err == (
        "lb: there is no backend 'two' in pool 'default'; there are 127.0.0.1:9001\n"
    )


def test_zones_are_shown_where_there_are_any(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1", "--id", "one")
    assert "zone" not in lb("backends", "list").out
    lb("backends", "add", "http://h:2", "--id", "two", "--zone", "east")
    assert registry.load("default").backends["two"].zone == "east"
    assert listed(lb)["two"]["zone"] == "east"
    for command in (("backends", "list"), ("status",)):
        rows = [line.split()[:3] for line in lb(*command).out.splitlines()]
        assert ["backend", "zone", "state"] in rows
        assert ["one", "–", "unknown"] in rows
        assert ["two", "east", "unknown"] in rows
    again = lb("backends", "add", "http://h:2", "--id", "two")
    assert "max_connections 0, zone east): remove it first" in again.err
    wrong = lb("backends", "add", "http://h:3", "--zone", "a b")
    assert wrong.code == 2
    assert "'a b' is no name of a zone" in wrong.err


def test_a_backup_says_so(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1", "--id", "one")
    added = lb("backends", "add", "http://h:2", "--id", "two", "--backup")
    assert added.out == "two is in pool default: unknown, gets requests when the others cannot\n"
    assert listed(lb)["two"]["backup"] is True
    table = lb("backends", "list").out.splitlines()
    assert table[0] == "default  round-robin, version 2"
    assert table[3].split()[:3] == ["two", "unknown,", "backup"]
    assert (
        "max_connections 0, backup): remove it first"
        in lb("backends", "add", "http://h:2", "--id", "two").err
    )
    lb("backends", "drain", "one")
    assert lb("backends", "list").out.splitlines()[0] == "default  round-robin, version 3, backups serve"


def test_adding_twice(lb: Lb, registry: Registry) -> None:
    assert lb("backends", "add", "http://h:1").code == 0
    version = registry.version("default")
    assert lb("backends", "add", "http://h:1").code == 0
    assert registry.version("default") == version
    result = lb("backends", "add", "http://h:1", "--weight", "2")
    assert result.code == 1
    assert result.err == (
        "lb: pool 'default' has a backend 'h:1' already, with other settings "
        "(http://h:1, weight 1, max_connections 0): remove it first, or give this one another --id\n"
    )
    assert listed(lb)["h:1"]["weight"] == 1


def test_drain_and_ready(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    assert lb("backends", "drain", "h:1").out == "h:1 gets no new requests; in flight now: 0\n"
    assert listed(lb)["h:1"]["state"] == "drain"
    assert lb("backends", "ready", "http://h:1").out == "h:1: unknown, gets requests\n"
    assert listed(lb)["h:1"]["state"] == "unknown"


def test_a_drain_is_waited_for(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    lease = WorkerLease(registry.scripts, "default", "w")
    lease.open({"h:1": 2})
    late = lb("backends", "drain", "h:1", "--wait", "--timeout", "0.3")
    assert late == (1, "", "lb: h:1 gets no new requests, but serves 2 after 0.3 s\n")
    over = threading.Timer(0.5, lease.close)
    over.start()
    began = time.monotonic()
    done = lb("backends", "drain", "http://h:1", "--wait", "--timeout", "20")
    assert done == (0, "h:1 gets no new requests; in flight now: 0\n", "")
    assert time.monotonic() - began >= 0.4
    over.join()
    assert lb("backends", "drain", "h:1", "--wait").code == 0  # at once
    assert lb("backends", "drain", "h:1", "--timeout", "3").code == 2


def test_ready_forgets_that_a_backend_was_down(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    lb("backends", "drain", "h:1")
    registry.change("default", decide.verdicts([("h:1", "down")]))
    assert lb("backends", "ready", "h:1").out == "h:1: unknown, gets requests\n"
    registry.change("default", decide.verdicts([("h:1", "down")]))
    assert registry.hold_health("somebody", 60)
    assert lb("backends", "ready", "h:1").out == (
        "h:1: checking, gets requests after its first successful probe\n"
    )
    registry.change("default", decide.verdicts([("h:1", "up")]))
    assert lb("backends", "ready", "h:1").out == "h:1: up, gets requests\n"


def ejects(snapshot: Snapshot) -> Change:
    """Let the pool eject backends."""
    return Change(settings=replace(snapshot.settings, outlier=OutlierPolicy(enabled=True)))


def test_ready_ends_an_ejection(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    lb("backends", "add", "http://h:2")
    registry.change("default", ejects)
    registry.change("default", outlier.eject("h:1", "5 failures in a row", registry.now()))
    assert "ejected 30 s, 1 in a row" in lb("backends", "list").out
    found = listed(lb)["h:1"]
    assert (found["state"], found["ejection_reason"]) == ("ejected", "5 failures in a row")
    assert lb("backends", "drain", "h:1").code == 0
    assert listed(lb)["h:1"]["state"] == "drain"
    assert lb("backends", "ready", "h:1").out == "h:1: unknown, gets requests\n"
    assert listed(lb)["h:1"]["ejected_until"] == 0


def test_one_whose_ejection_is_over_waits(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    lb("backends", "add", "http://h:2")
    registry.change("default", ejects)
    registry.change("default", outlier.eject("h:1", "5 failures in a row", registry.now() - 31))
    assert "ejected, waits for a probing request" in lb("backends", "list").out


def test_a_new_backend_waits_for_the_health_daemon(lb: Lb, registry: Registry) -> None:
    assert registry.hold_health("somebody", 60)
    assert lb("backends", "add", "http://h:1").out == (
        "h:1 is in pool default: checking, gets requests after its first successful probe\n"
    )


def test_weight(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    assert lb("backends", "weight", "h:1", "7").out == "h:1: weight 7\n"
    assert listed(lb)["h:1"]["weight"] == 7
    assert lb("backends", "weight", "h:1", "0").code == 0
    assert lb("backends", "ready", "h:1").out == "h:1: unknown, gets no requests (its weight is 0)\n"


def test_backends_of_the_file_come_back(lb: Lb, registry: Registry) -> None:
    registry.change("default", decide.declare(PoolConfig(backends=(BackendSpec("http://h:1"),))))
    words = " (it is in the configuration, which a start or a reload of the balancer publishes again)\n"
    assert lb("backends", "weight", "h:1", "7").out == "h:1: weight 7" + words
    assert lb("backends", "remove", "h:1").out == "h:1 is no longer in pool default" + words


def test_other_pools(lb: Lb, registry: Registry) -> None:
    registry.change("web", lambda snapshot: decide.Change(settings=PoolSettings("least-connections")))
    registry.change("default", decide.add(Backend("d", "http://d:1")))
    assert lb("backends", "add", "http://w:1", "--pool", "web").code == 0
    assert list(listed(lb, "web")) == ["w:1"]
    assert list(lb("backends", "list", "--pool", "web", "--json").json["pools"]) == ["web"]
    both = lb("backends", "list").out
    assert "default  round-robin" in both
    assert "web  least-connections" in both
    assert lb("backends", "drain", "w:1").code == 1
    assert lb("backends", "list", "--pool", "wbe").err == "lb: there is no pool 'wbe'; did you mean 'web'?\n"


def test_a_report_is_taken_by_id_or_url(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    result = lb("backends", "report", "h:1", "--cpu", "0.25", "--memory", "0.75", "--load", "0.5")
    assert result == (0, "h:1: 0.25 of its weight counts, once its reports do\n", "")
    found = lb("backends", "report", "http://h:1", "--running", "3", "--capacity", "4")
    assert found.code == 0
    assert 0.249 < float(found.out.split()[1]) < 0.251  # the same again: smoothing changes nothing
    # Nearly all of it is in use: it keeps a little, so that it can show when that is over.
    lb("backends", "add", "http://h:2")
    assert lb("backends", "report", "h:2", "--load", "1").out.startswith("h:2: 0.01 of its weight")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "says nothing; give one of cpu, memory, load, or running and capacity"),
        (("--cpu", "1.5"), "cpu: 1.5 is no share in use; write 0 (idle) to 1 (all of it)"),
        (("--load", "nan"), "load: nan is no share in use"),
        (("--memory", "-0.1"), "memory: -0.1 is no share in use"),
        (("--running", "3"), "running says nothing without capacity, cpu, memory or load"),
        (("--capacity", "3"), "capacity says nothing without running"),
        (("--running", "-1", "--capacity", "3"), "running: -1 requests cannot be"),
        (("--running", "1", "--capacity", "0"), "capacity: 0 requests cannot be"),
        (("--cpu", "much"), "'much' is not a valid float"),
    ],
)
def test_a_bad_report_is_refused(lb: Lb, registry: Registry, options: tuple[str, ...], text: str) -> None:
    lb("backends", "add", "http://h:1")
    result = lb("backends", "report", "h:1", *options)
    assert result.code == 2
    assert text in " ".join(result.err.split())


def test_a_report_of_nobody_is_refused(lb: Lb, registry: Registry) -> None:
    lb("backends", "add", "http://h:1")
    result = lb("backends", "report", "h:2", "--cpu", "0.5")
    assert result.code == 1
    assert result.err == "lb: there is no backend 'h:2' in pool 'default'; did you mean 'h:1'?\n"
