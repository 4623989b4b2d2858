"""Two balancers in two zones on one store: each serves its own, until that has lost too much."""

from __future__ import annotations

import pytest

from tests.e2e.test_api import LIST, Api
from tests.support.clients import Load, get
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import eventually

ZONES = ("east", "west")
PATHS = {"east": "/e", "west": "/w"}


def shares(backends: dict[str, list[PlainBackend]], path: str) -> dict[str, list[int]]:
    """How often each backend was asked for a path, by zone."""
    return {zone: [each.counts().get(path, 0) for each in there] for zone, there in backends.items()}


def in_zones(backends: dict[str, list[PlainBackend]]) -> str:
    return ",".join(f"{each.url};zone={zone}" for zone, there in backends.items() for each in there)


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_each_zone_serves_itself_spills_over_and_comes_back(system: System, worker: str) -> None:
    """Two of three in one zone are killed under load and started again: nobody notices."""
    store = system.store("redis")
    backends = {zone: [system.plain_backend() for _ in range(3)] for zone in ZONES}
    env = {"LB_HEALTH_PATH": "/", "LB_HEALTH_FALL": "3", "LB_HEALTH_RISE": "1"}
    balancers: dict[str, Balancer] = {
        zone: system.balancer(
            store=store.url,
            backends=in_zones(backends),
            workers=2,
            worker=worker,
            env={**env, "LB_ZONE": zone},
            wait=False,
        )
        for zone in ZONES
    }
    for balancer in balancers.values():
        balancer.start()
    east, west = balancers["east"], balancers["west"]
    system.health(east, 0.2)
    eventually(lambda: set(east.view.states().values()) == {"up"}, "all to be up")

    # Each its own, and exactly in turn over its workers.
    for zone, balancer in balancers.items():
        load = Load([balancer.port], 16, PATHS[zone], total=601).run()
        assert load.failures == []
        assert load.statuses == {200: 601}
        found = shares(backends, PATHS[zone])
        assert sorted(found.pop(zone)) == [200, 200, 201]
        assert list(found.values()) == [[0, 0, 0]]

    with Load([east.port], 8, "/e").running() as ours, Load([west.port], 8, "/w").running() as theirs:
        eventually(lambda: ours.done > 50 and theirs.done > 50, "requests in both zones")
        for backend in backends["east"][:2]:
            backend.kill()
        said = "backends of zone east are available, a share below 0.7: balancing over all zones"
        eventually(lambda: said in east.process.err, "the east to spill over")
        eventually(lambda: min(shares({"west": backends["west"]}, "/e")["west"]) > 50, "the west to help")
        helped = shares({"west": backends["west"]}, "/w")["west"]
        eventually(lambda: sum(shares({"west": backends["west"]}, "/w")["west"]) > sum(helped) + 50, "more")

        ports = [backend.port for backend in backends["east"][:2]]
        backends["east"][:2] = [system.plain_backend(port) for port in ports]
        back = "pool default: 3 of 3 backends of zone east are available: they get the requests of this zone"
        eventually(lambda: east.process.err.count(back) >= 2, "both workers of the east to come back")
        eventually(lambda: backends["east"][0].counts().get("/e", 0) > 50, "requests served at home")
        before = shares({"west": backends["west"]}, "/e")["west"]
        done = ours.done
        eventually(lambda: ours.done > done + 100, "more requests")
        # Only what was claimed before the change may still arrive.
        assert sum(shares({"west": backends["west"]}, "/e")["west"]) - sum(before) <= 8
    assert ours.failures == theirs.failures == []
    assert set(ours.statuses) == set(theirs.statuses) == {200}
    # The west has kept to itself all the time.
    assert "zone west" not in west.process.err
    assert shares({"east": backends["east"]}, "/w")["east"] == [0, 0, 0]

    # And at home they take exact turns again.
    first = shares(backends, "/e")
    assert Load([east.port], 16, "/e", total=300).run().statuses == {200: 300}
    after = shares(backends, "/e")
    gained = [new - old for new, old in zip(after["east"], first["east"], strict=True)]
    assert all(abs(count - 100) <= 1 for count in gained), gained
    assert after["west"] == first["west"]
    east.idle()


def test_a_full_zone_is_helped_out_and_a_cap_is_one_cap(system: System) -> None:
    """A balancer of the zone and one of none share what its backend may hold."""
    store = system.store()
    near, far = system.plain_backend(delay=0.05), system.plain_backend(delay=0.05)
    urls = f"{near.url};zone=east;max_connections=3,{far.url};zone=west"
    balancers = [
        system.balancer(
            store=store.url, backends=urls, env={"LB_ALGORITHM": "least-connections", "LB_ZONE": zone}
        )
        for zone in ("east", "")
    ]
    with Load([balancer.port for balancer in balancers], 16, "/x").running() as load:
        eventually(lambda: load.done > 200, "requests")
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert near.most()["/x"] == 3
    assert far.counts()["/x"] > 0
    balancers[0].idle()


def test_a_backend_is_put_into_a_zone_while_it_runs(system: System) -> None:
    """By the control API: the fleet goes by it at once."""
    first, second = system.plain_backend(), system.plain_backend()
    balancer = system.balancer(backends=f"{first.url},{second.url}", env={"LB_ZONE": "east"})

    def served() -> list[int]:
        before = [each.counts().get("/x", 0) for each in (first, second)]
        assert [get(balancer.port, "/x").status for _ in range(6)] == [200] * 6
        after = [each.counts().get("/x", 0) for each in (first, second)]
        return [new - old for new, old in zip(after, before, strict=True)]

    assert served() == [3, 3]
    patch(balancer, second.id, "east")
    eventually(lambda: served() == [0, 6], "requests to go to the zone alone")
    patch(balancer, first.id, "east")
    eventually(lambda: served() == [3, 3], "requests to go to both")
    patch(balancer, second.id, "west")
    eventually(lambda: served() == [6, 0], "requests to go to the one that stayed")
    assert [one.zone for one in balancer.view.registry.status("default")].count("west") == 1


def patch(balancer: Balancer, backend: str, zone: str) -> None:
    assert Api(balancer).json("PATCH", f"{LIST}/{backend}", {"zone": zone})["zone"] == zone
