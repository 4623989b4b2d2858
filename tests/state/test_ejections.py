"""A worker's ejections, committed: once for the fleet, and alone while the store is away."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import redis

from lb.model import Breaker, OutlierPolicy, PoolSettings, Snapshot
from lb.settings import BackendSpec
from lb.state import decide, knock, outlier
from lb.state.claims import Claims
from lb.state.decide import Change
from lb.state.ejections import Ejections
from lb.state.guard import FAILED, FINE, GONE, LOST, Event, call_keys
from lb.state.keys import PoolKeys
from lb.state.knock import Knocks
from lb.state.registry import Registry
from lb.state.scripts import CLAIM_SHA, LINKED
from lb.state.threads import ThreadRuntime
from tests.support.run import eventually

OUT = Event("a:80", "outlier", reason="5 failures in a row")


class Worker:
    """What is needed of one."""

    def __init__(self, snapshot: Snapshot) -> None:
        def nothing(*_: object) -> None:
            pass

        self.woken = 0
        keys = PoolKeys("p")
        self.claims = Claims(keys, "w", snapshot, nothing, nothing, nothing, nothing)
        #: Whether the backends accept connections; who was knocked at.
        self.there: bool | None = None
        self.knocked: list[str] = []
        self.ejections = Ejections(
            lambda claims, snapshot: claims.update(snapshot),
            self.wake,
            Knocks(ThreadRuntime(), self.accepts),
        )

    @property
    def out(self) -> Breaker:
        """Of the first backend."""
        return self.claims.snapshot.backends["a:80"].breaker

    def wake(self) -> None:
        self.woken += 1

    def accepts(self, pool: str, url: str, timeout: float) -> bool | None:
        self.knocked.append(f"{pool} {url}")
        return self.there

    def look(self, registry: Registry | None, *events: Event) -> dict[str, str]:
        """The state of each backend after these events."""
        for event in events:
            self.ejections.tell("p", event)
        self.ejections.look_after({"p": self.claims}, registry)
        return {name: backend.state for name, backend in self.claims.snapshot.backends.items()}

    def waits_for_its_probe(self, registry: Registry | None) -> None:
        """Wait until the first backend is half-open here."""

        def due() -> bool:
            self.look(registry)
            return self.claims.guard.due == ("a:80",)

        eventually(due, "the ejection to be over")


def configured(names: str = "abc", base: float = 30.0) -> Snapshot:
    settings = PoolSettings(outlier=OutlierPolicy(enabled=True, base_ejection_time=base))
    specs = [BackendSpec(f"http://{name}:80") for name in names]
    return decide.configured("p", settings, specs)


@pytest.fixture
def workers(registry: Registry) -> Callable[..., tuple[Worker, Worker]]:
    def make(base: float = 30.0) -> tuple[Worker, Worker]:
        known = configured(base=base)
        pool = registry.change("p", lambda _: Change(tuple(known.backends.values()), (), known.settings))
        return Worker(pool), Worker(pool)

    return make


def test_once_for_the_fleet(
    registry: Registry, workers: Callable[..., tuple[Worker, Worker]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lb")
    one, other = workers()
    assert one.look(registry, OUT) == {"a:80": "ejected", "b:80": "unknown", "c:80": "unknown"}
    assert one.woken == 1
    assert not one.claims.guard.due
    # Others may say the same, or that of another one; the bound holds for all.
    assert set(other.look(registry, OUT, Event("b:80", "outlier")).values()) == {"unknown"}
    found = {status.id: status for status in registry.status("p")}
    assert (found["a:80"].state, found["a:80"].ejections) == ("ejected", 1)
    assert found["a:80"].ejected_until == pytest.approx(registry.now() + 30, abs=5)
    assert [record.getMessage() for record in caplog.records] == [
        "pool p: a:80 is ejected for 30 s: 5 failures in a row"
    ]


def test_it_waits_for_its_probe_and_is_back(
    registry: Registry, workers: Callable[..., tuple[Worker, Worker]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lb")
    worker, _ = workers(base=0.001)
    worker.look(registry, OUT)
    worker.waits_for_its_probe(registry)
    until = worker.claims.snapshot.backends["a:80"].breaker.until
    assert worker.look(registry, Event("a:80", "void", until))["a:80"] == "ejected"
    again = worker.claims.snapshot.backends["a:80"].breaker.until
    assert again > until
    worker.look(registry, Event("a:80", "failed", again, "503"))
    last = worker.claims.snapshot.backends["a:80"].breaker
    assert (last.times, last.reason) == (2, "503 when probed")
    assert worker.look(registry, Event("a:80", "succeeded", last.until))["a:80"] == "unknown"
    assert not worker.claims.guard.due
    assert [record.getMessage() for record in caplog.records] == [
        "pool p: a:80 is ejected for 0.001 s: 5 failures in a row",
        "pool p: a:80 is ejected for 0.002 s: 503 when probed",
        "pool p: a:80 is back: a request that probed it succeeded",
    ]


def test_alone_by_the_same_rules(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lb")
    worker = Worker(configured(base=0.001))
    states = worker.look(None, OUT, Event("b:80", "outlier"))
    assert states == {"a:80": "ejected", "b:80": "unknown", "c:80": "unknown"}
    assert worker.claims.snapshot.version == 0
    worker.waits_for_its_probe(None)
    until = worker.claims.snapshot.backends["a:80"].breaker.until
    assert worker.look(None, Event("a:80", "succeeded", until))["a:80"] == "unknown"
    assert caplog.records[0].getMessage() == (
        "pool p: a:80 is ejected for 0.001 s: 5 failures in a row (on this worker's own view)"
    )


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knock, "EVERY", 0.01)


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("alone", [False, True])
def test_who_was_gone_and_accepts_again_may_be_probed(
    registry: Registry,
    workers: Callable[..., tuple[Worker, Worker]],
    caplog: pytest.LogCaptureFixture,
    alone: bool,
) -> None:
    caplog.set_level(logging.INFO, "lb")
    worker, other = workers()
    store = None if alone else registry
    worker.there = False
    worker.look(store, OUT._replace(outcome=LOST))
    out = worker.claims.snapshot.backends["a:80"].breaker
    eventually(lambda: len(worker.knocked) > 2, "some knocks")
    assert worker.knocked[0] == "p http://a:80"
    worker.look(store)
    assert not worker.claims.guard.due
    worker.there = True
    worker.waits_for_its_probe(store)
    over = worker.claims.snapshot.backends["a:80"].breaker
    assert (over.open, over.since, over.times, over.reason) == (True, out.since, 1, out.reason)
    assert out.since <= over.until < out.until
    assert caplog.records[-1].getMessage().startswith("pool p: a:80 accepts connections again after ")
    eventually(lambda: worker.ejections._knocks._running == 0, "the knocking to end")
    if alone:
        return
    # The others know of it, and one probe ends or prolongs it as usual.
    assert registry.load("p").backends["a:80"].breaker == over
    assert not other.knocked
    assert worker.look(store, Event("a:80", "succeeded", over.until))["a:80"] == "unknown"


@pytest.mark.usefixtures("brisk")
def test_who_answers_is_not_knocked_at_and_who_accepts_all_along_stays_out(
    registry: Registry, workers: Callable[..., tuple[Worker, Worker]]
) -> None:
    worker, other = workers()
    worker.there = other.there = True
    worker.look(registry, OUT._replace(outcome=FAILED))
    assert worker.ejections._knocks._running == 0
    registry.change("p", outlier.probe_succeeded("a:80", worker.out.until, registry.now()))
    other.claims.update(registry.load("p"))
    other.look(registry, OUT._replace(outcome=LOST))
    until = other.out.until
    eventually(lambda: len(other.knocked) > 5, "some knocks")
    other.look(registry)
    assert (other.out.until, other.claims.guard.due) == (until, ())
    assert worker.knocked == []
    other.ejections.stop()


@pytest.mark.usefixtures("brisk")
def test_a_probe_that_finds_nobody_is_followed_by_knocks(
    registry: Registry, workers: Callable[..., tuple[Worker, Worker]]
) -> None:
    worker, _ = workers(base=0.01)
    worker.look(registry, OUT)
    worker.waits_for_its_probe(registry)
    registry.change("p", lambda _: Change(settings=configured(base=30.0).settings))
    worker.there = True
    worker.look(registry, Event("a:80", "failed", worker.out.until, "connect_failed", GONE))
    assert worker.out.times == 2
    eventually(lambda: len(worker.knocked) > 5, "some knocks")
    worker.look(registry)
    assert not worker.claims.guard.due  # the second time in a row it lasts for three seconds at least
    worker.ejections.stop()


@pytest.mark.parametrize("alone", [False, True])
def test_nobody_is_ejected_while_nobody_does_better(
    registry: Registry, workers: Callable[..., tuple[Worker, Worker]], alone: bool
) -> None:
    worker, _ = workers()
    store = None if alone else registry
    requests = Requests(worker, registry, alone)
    for name in ("a:80", "b:80", "c:80"):
        requests.end(name, 5, failed=True)
    assert set(worker.look(store).values()) == {"unknown"}
    assert set(worker.look(store, OUT).values()) == {"unknown"}
    requests.end("c:80", 1, failed=False)
    assert worker.look(store, OUT)["a:80"] == "ejected"


class Requests:
    """What ends well or not, as the store counts it, or the worker while it is alone."""

    def __init__(self, worker: Worker, registry: Registry, alone: bool) -> None:
        self.worker = worker
        self.client = registry.client
        self.alone = alone
        self.keys = call_keys(worker.claims.keys, "w")
        worker.claims.guard.store_is(away=alone)
        worker.claims.guard._tell = lambda event: None
        if not alone:
            for script in LINKED:
                self.client.script_load(script)
            registry.scripts.lease(worker.claims.keys, "w", "e", {})

    def end(self, name: str, count: int, failed: bool) -> None:
        guard = self.worker.claims.guard
        if not self.alone:
            rules = [f"f\t{name}\t"] * count
            self.client.evalsha(CLAIM_SHA, len(self.keys), *self.keys, "e", count, 0, "", *rules)
        for _ in range(count):
            guard.note(name, FAILED if failed else FINE)
        if not self.alone and failed:
            _, sha, *rest = guard.report(self.keys, "e", 1)
            self.client.evalsha(sha, int(str(rest[0])), *rest[1:], name, count)  # type: ignore[arg-type]
        elif not self.alone:
            self.client.evalsha(CLAIM_SHA, len(self.keys), *self.keys, "e", 0, 1, "", name, count)


def test_what_is_told_of_what_is_gone_does_nothing(client: redis.Redis, registry: Registry) -> None:
    worker = Worker(registry.change("p", decide.restore(configured("ab"))))
    registry.change("p", decide.remove("a:80"))
    version = registry.version("p")
    worker.look(registry, OUT, Event("a:80", "succeeded", 1.0), Event("a:80", "void", 1.0))
    assert registry.version("p") == version
