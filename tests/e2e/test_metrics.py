"""`/metrics` of real balancers: the same from whichever worker answers, and counters that never go back."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lb import __version__
from lb.control.metrics import FAMILIES, OPEN, TEXT
from tests.support.backends import Backend, close_unanswered, in_steps, ok, several
from tests.support.clients import Answer, Client, Load, get, request
from tests.support.processes import Balancer, System
from tests.support.run import ROOT, alive, eventually

KINDS = ["gevent", "gthread"]
LABELS = {"pool", "backend", "state", "algorithm", "version"}
OPEN_ACCEPT = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def ask(balancer: Balancer, *fields: str) -> Answer:
    """A scrape on a connection of its own, so that any worker may answer."""
    answer = try_to(balancer, *fields)
    assert answer.status == 200
    return answer


def try_to(balancer: Balancer, *fields: str) -> Answer:
    with Client(balancer.control) as client:
        client.send(request("GET", "/metrics", *fields, host="127.0.0.1"))
        return client.read_answer()


def samples(text: str, parse: Callable[[str], object] = parse_text) -> Samples:
    """Every sample by its name and labels; none is there twice."""
    found: Samples = {}
    for family in parse(text):  # type: ignore[attr-defined]
        assert isinstance(family, Metric)
        for one in family.samples:
            key = one.name, tuple(sorted(one.labels.items()))
            assert key not in found
            assert set(one.labels) <= LABELS
            found[key] = one.value
    return found


def scrape(balancer: Balancer) -> Samples:
    return samples(ask(balancer).body.decode())


def one(found: Samples, name: str, **labels: str) -> float:
    """The only sample of that name, and with those labels among its own."""
    fitting = [
        value
        for (known, own), value in found.items()
        if known == name and labels.items() <= dict(own).items()
    ]
    assert len(fitting) == 1, (name, labels, fitting)
    return fitting[0]


def has(found: Samples, name: str) -> bool:
    return any(known == name for known, _ in found)


def counters(found: Samples) -> Samples:
    return {key: value for key, value in found.items() if key[0].endswith("_total")}


@pytest.mark.parametrize("worker", KINDS)
def test_all_of_it_in_both_formats(system: System, worker: str) -> None:
    with Backend() as backend:
        config = f"""
            [pools.default]
            algorithm = "least-connections"
            backends = [
                {{url = "{backend.url}", id = "one", weight = 3, max_connections = 7}},
                {{url = "http://127.0.0.1:9", id = "away"}},
            ]
            [pools.other]
            backends = []
        """
        balancer = system.balancer(config=config, workers=2, worker=worker)
        balancer.lb("backends", "drain", "away")
        for _ in range(5):
            assert get(balancer.port).status == 200
        balancer.idle()

        text = ask(balancer)
        assert text.values("Content-Type") == [TEXT]
        assert text.values("Cache-Control") == ["no-store"]
        found = samples(text.body.decode())
        of = {"pool": "default", "backend": "one"}
        assert one(found, "lb_backend_requests_total", **of) == 5
        assert one(found, "lb_backend_requests_in_flight", **of) == 0
        assert one(found, "lb_backend_weight", **of) == 3
        assert one(found, "lb_backend_max_connections", **of) == 7
        assert one(found, "lb_backend_ejections", **of) == 0
        for name, wanted in (("one", "unknown"), ("away", "drain")):
            states = {
                dict(labels)["state"]: value
                for (known, labels), value in found.items()
                if known == "lb_backend_state" and dict(labels)["backend"] == name
            }
            assert [state for state, value in states.items() if value] == [wanted]
            assert len(states) == 6
        for pool in ("default", "other"):
            assert one(found, "lb_pool_queued_requests", pool=pool) == 0
            assert one(found, "lb_retries_refused_total", pool=pool) == 0
        assert one(found, "lb_pool_algorithm_info", pool="default", algorithm="least-connections") == 1
        assert one(found, "lb_pool_algorithm_info", pool="other", algorithm="round-robin") == 1
        assert one(found, "lb_build_info", version=__version__) == 1
        assert one(found, "lb_shared_state_up") == 1
        assert one(found, "lb_workers") == 2
        assert one(found, "lb_workers_degraded") == 0
        assert one(found, "lb_client_connections") >= 1
        assert one(found, "lb_client_requests_in_flight") >= 1
        assert one(found, "lb_resident_memory_bytes") > 2 * 10e6
        assert has(found, "lb_event_loop_delay_seconds") == (worker == "gevent")

        answer = ask(balancer, OPEN_ACCEPT)
        assert answer.values("Content-Type") == [OPEN]
        assert answer.body.endswith(b"# EOF\n")
        assert samples(answer.body.decode(), parse_open).keys() == found.keys()
        assert get(balancer.port, "/metrics").body == b"ok"  # on the data side it is the backends'


def documented() -> dict[str, str]:
    """Labels by name, as the table in the documentation has them."""
    text = (ROOT / "docs/operations.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(lb_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", text, re.MULTILINE)
    for name, kind, _, what in rows:
        assert (FAMILIES[name].kind, FAMILIES[name].help) == (kind, what)
    return {name: labels.replace("`", "") for name, _, labels, _ in rows}


def test_the_documentation_names_what_there_is(system: System) -> None:
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url)
        found: dict[str, set[str]] = defaultdict(set)
        for name, labels in scrape(balancer):
            found[name] |= {label for label, _ in labels}
    wanted = {name: set(labels.split(", ")) - {""} for name, labels in documented().items()}
    assert found == wanted
    assert list(wanted) == list(FAMILIES)


@pytest.mark.parametrize("worker", KINDS)
def test_counters_only_grow_whoever_answers(system: System, worker: str) -> None:
    """Under load, while a worker is killed and while all are replaced; what was counted stays."""
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(
        backends=",".join(backend.url for backend in backends),
        workers=2,
        worker=worker,
        env={"LB_ACCESS_LOG": "/dev/full"},
    )
    last: Samples = {}

    def look() -> Samples:
        found = scrape(balancer)
        assert last.keys() <= counters(found).keys()
        for key, value in counters(found).items():
            assert value >= last.get(key, 0.0), key
            last[key] = value
        return found

    def lost() -> float:
        return one(look(), "lb_access_log_lines_lost_total")

    def requests() -> float:
        found = look()
        return sum(value for (name, _), value in found.items() if name == "lb_backend_requests_total")

    with Load([balancer.port], 8).running() as load:
        load.more(200)
        for _ in range(30):
            look()
        eventually(lambda: lost() > 100, "lost lines to be counted")
        (victim, *_) = old = balancer.worker_pids
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: not alive(victim), "a worker to die")
        for _ in range(10):
            look()
        eventually(lambda: look() and len(balancer.worker_pids) == 2, "another one")
        balancer.send(signal.SIGHUP)
        eventually(lambda: look() and not any(alive(pid) for pid in old), "the others to be replaced", 30)
        eventually(lambda: one(look(), "lb_workers") == 2, "them to have left")
    balancer.idle()
    served = sum(sum(backend.counts().values()) for backend in backends)
    eventually(lambda: requests() >= served, "each request to be counted")


@pytest.mark.parametrize("worker", KINDS)
def test_either_worker_tells_of_both(system: System, worker: str) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(
        backends=backend.url, workers=2, worker=worker, env={"LB_ACCESS_LOG": "/dev/full"}
    )
    assert not Load([balancer.port], 8, total=100, fresh=True).run().failures

    def lost() -> float:
        return one(scrape(balancer), "lb_access_log_lines_lost_total")

    eventually(lambda: lost() == 100, "each lost line to be counted")
    for _ in range(20):
        assert lost() == 100


def test_an_upgrade_takes_over_what_was_counted(system: System) -> None:
    """Workers of both masters answer, and all tell the same; twice, so that places are used again."""
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2, env={"LB_ACCESS_LOG": "/dev/full"})
    lost = 0.0

    def told() -> float:
        nonlocal lost
        found = one(scrape(balancer), "lb_access_log_lines_lost_total")
        assert found >= lost
        lost = found
        return found

    def serve(count: int) -> None:
        assert not Load([balancer.port], 4, total=count).run().failures

    serve(100)
    eventually(lambda: told() == 100, "each line to be counted")
    balancer.upgrade()
    assert one(scrape(balancer), "lb_workers") == 4
    serve(100)
    eventually(lambda: told() == 200, "those of both masters")
    for _ in range(20):
        assert told() == 200
    balancer.stop_successor()
    eventually(lambda: one(scrape(balancer), "lb_workers") == 2, "the new workers to be gone")
    assert told() == 200
    balancer.upgrade()
    serve(100)
    eventually(lambda: told() == 300, "those of another successor")
    balancer.stop_successor()


@pytest.mark.parametrize("worker", KINDS)
def test_a_store_that_hangs(system: System, worker: str) -> None:
    store = system.store()
    with Backend() as backend:
        balancer = system.balancer(store=store.url, backends=backend.url, workers=2, worker=worker)
        assert get(balancer.port).status == 200
        before = scrape(balancer)
        assert one(before, "lb_shared_state_losses_total") == 0
        store.send(signal.SIGSTOP)
        try:
            # Whoever answers cannot read it, and says so; the next one, too.
            for _ in range(5):
                assert one(scrape(balancer), "lb_shared_state_up") == 0
            eventually(lambda: one(scrape(balancer), "lb_workers_degraded") == 2, "both to notice", 15)
            for _ in range(10):
                found = scrape(balancer)
                assert one(found, "lb_shared_state_up") == 0
                assert one(found, "lb_workers") == 2
                assert one(found, "lb_shared_state_losses_total") >= 2
                missing = {name for name, _ in before} - {name for name, _ in found}
                assert missing == {
                    "lb_backend_requests_total",
                    "lb_backend_requests_in_flight",
                    "lb_pool_queued_requests",
                }
                assert one(found, "lb_backend_state", state="unknown") == 1
            text = ask(balancer, OPEN_ACCEPT).body.decode()
            assert one(samples(text, parse_open), "lb_shared_state_up") == 0
        finally:
            store.send(signal.SIGCONT)

        def back() -> bool:
            found = scrape(balancer)
            return one(found, "lb_shared_state_up") == 1 and one(found, "lb_workers_degraded") == 0

        eventually(back, "the shared state", 15)
        found = scrape(balancer)
        assert one(found, "lb_shared_state_losses_total") >= 2
        assert one(found, "lb_backend_requests_total") == 1


def test_who_dies_degraded_leaves_nothing_of_it_behind(system: System) -> None:
    """Only one of two has lost the store, and is killed before it gets it back."""
    store = system.store()
    balancer = system.balancer(store=store.url, backends="http://127.0.0.1:9", workers=2)
    store.send(signal.SIGSTOP)
    try:
        eventually(lambda: one(scrape(balancer), "lb_workers_degraded") == 2, "both to notice", 15)
        victim, _ = balancer.worker_pids
        os.kill(victim, signal.SIGSTOP)  # it will not see that the store is back
    finally:
        store.send(signal.SIGCONT)
    eventually(lambda: one(scrape(balancer), "lb_workers_degraded") == 1, "the other one to be back")
    found = scrape(balancer)
    losses = one(found, "lb_shared_state_losses_total")
    assert one(found, "lb_shared_state_up") == 0
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: one(scrape(balancer), "lb_shared_state_up") == 1, "nothing to be degraded")
    found = scrape(balancer)
    assert one(found, "lb_workers_degraded") == 0
    assert one(found, "lb_shared_state_losses_total") >= losses


def test_what_is_refused_for_overload_is_counted(system: System) -> None:
    with Backend(in_steps(ok())) as backend:
        balancer = system.balancer(
            backends=backend.url, workers=2, config="[limits]\nrequests = 1\n", env={"LB_RETRY_ATTEMPTS": "1"}
        )
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(balancer.port)) for _ in range(10)]
            for client in clients:
                client.send(request("GET", "/"))
            eventually(lambda: "overloaded" in balancer.process.out, "some to be refused")
            backend.may_go_on.release(10)
            refused = sum(client.read_answer().status == 503 for client in clients)
        assert 0 < refused < 10
        eventually(
            lambda: one(scrape(balancer), "lb_overload_refusals_total") == refused, "them to be counted"
        )


@pytest.mark.parametrize("worker", KINDS)
def test_retries_beyond_the_budget_are_counted(system: System, worker: str) -> None:
    """Of each pool its own, over both workers."""
    with several(*[close_unanswered] * 2) as backends:
        urls = ", ".join(f'{{url = "{one.url}"}}' for one in backends)
        config = f"""
            [pools.default]
            backends = [{urls}]
            retry = {{budget = 0.0, budget_min = 0.0}}
            [pools.other]
            backends = []
            [[routes]]
            pool = "default"
        """
        balancer = system.balancer(config=config, workers=2, worker=worker)
        load = Load([balancer.port], 8, total=60, wanted=502).run()
        assert load.failures == []

        def refused(pool: str) -> float:
            return one(scrape(balancer), "lb_retries_refused_total", pool=pool)

        eventually(lambda: refused("default") == 60, "each of them to be counted")
        assert refused("other") == 0


@pytest.mark.parametrize("worker", KINDS)
def test_the_control_token_is_asked_for(system: System, worker: str) -> None:
    balancer = system.balancer(
        backends="http://127.0.0.1:9", worker=worker, env={"LB_CONTROL_TOKEN": "a-secret"}
    )
    assert try_to(balancer).status == 401
    assert try_to(balancer, "Authorization: Bearer wrong").status == 401
    ask(balancer, "Authorization: Bearer a-secret")


@pytest.mark.slow
def test_requests_are_served_while_ten_thousand_backends_are_told_of(system: System) -> None:
    """The one worker there is does both, in turns."""
    many = 10_000
    with Backend() as backend:
        members = ", ".join(
            f'{{url = "http://127.0.0.1:9", id = "b{n:05}", weight = 0}}' for n in range(many)
        )
        balancer = system.balancer(
            config=f"""
                [pools.many]
                backends = [{members}]
                [pools.default]
                backends = [{{url = "{backend.url}"}}]
                [[routes]]
                pool = "default"
            """
        )
        answers: list[Answer] = []
        scraping = threading.Thread(target=lambda: answers.append(ask(balancer)))
        served = 0
        with Client(balancer.port) as client:
            assert client.get("/").status == 200
            scraping.start()
            while scraping.is_alive():
                assert client.get("/").status == 200
                served += 1
        assert served >= 50  # as many as one has a turn for between eleven times ten thousand samples
        found = ask(balancer, OPEN_ACCEPT).body.decode()
        for text in (answers[0].body.decode(), found):
            assert text.count("\nlb_backend_weight{") == many + 1
            assert text.count("\nlb_backend_state{") == 6 * (many + 1)
