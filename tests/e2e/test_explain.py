"""What is told of requests: of real balancers, at whichever of them it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from lb.state import decide
from tests.e2e.test_api import Api
from tests.support.backends import Backend, answer_of, in_steps, refusing, reset_unanswered, serve, stall
from tests.support.clients import Answer, Client, get
from tests.support.processes import Balancer, System
from tests.support.run import eventually

KINDS = ["gevent", "gthread"]
ALL = {"LB_DECISION_SAMPLE": "1", "LB_DECISION_RATE": "0", "LB_UPSTREAM_MAX_IDLE": "0"}
FAILED = {"LB_DECISION_SAMPLE": "0", "LB_UPSTREAM_MAX_IDLE": "0"}


def told(balancer: Balancer, target: str, ask: Balancer | None = None) -> dict[str, Any]:
    """What is kept of the one request for `target`, as a balancer tells it (another one, if given)."""
    request_id = balancer.logged(target)["id"]
    api, found = Api(ask or balancer), dict[str, Any]()

    def look() -> bool:
        answer = api("GET", f"/v1/decisions/{request_id}")
        if answer.status == 200:
            found.update(api.json("GET", f"/v1/decisions/{request_id}"))
        return answer.status == 200

    eventually(look, f"the decision for {target}")
    assert found["id"] == request_id
    return found


def reasons(attempt: dict[str, Any]) -> dict[str, str]:
    return {one["id"]: one["reason"] for one in attempt.get("excluded", ())}


def numbers(attempt: dict[str, Any]) -> dict[str, int | None]:
    return {one["id"]: one.get("in_flight") for one in attempt.get("candidates", ())}


@contextmanager
def held(balancer: Balancer, count: int, target: str = "/held") -> Iterator[list[Client]]:
    """So many requests that wait for their answers."""
    clients = [Client(balancer.port) for _ in range(count)]
    try:
        before = balancer.view.in_flight()
        for number, client in enumerate(clients):
            client.send(b"GET %b HTTP/1.1\r\nHost: t.example\r\n\r\n" % target.encode())
            wanted = before + number + 1
            eventually(lambda: balancer.view.in_flight() == wanted, "it to be claimed")
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("worker", KINDS)
def test_counts_are_those_at_the_instant_of_the_pick(system: System, worker: str) -> None:
    with Backend() as one, Backend() as two, Backend() as three:
        balancer = system.balancer(
            backends=",".join(b.url for b in (one, two, three)),
            worker=worker,
            env={"LB_ALGORITHM": "least-connections", **ALL},
        )
        for backend in (one, two, three):
            backend.script = stall
        with held(balancer, 4):
            before = {s.id: s.in_flight for s in balancer.view.registry.status("default")}
            assert sorted(before.values()) == [1, 1, 2]
            eventually(lambda: sum(len(b.requests) for b in (one, two, three)) == 4, "all to arrive")
            for backend in (one, two, three):
                backend.script = serve()
            assert get(balancer.port, "/asked").status == 200
            found = told(balancer, "/asked")
        assert found["sampled"] is True
        (attempt,) = found["attempts"]
        assert (attempt["basis"], attempt["algorithm"], attempt["outcome"]) == (
            "shared",
            "least-connections",
            "answered",
        )
        assert numbers(attempt) == before
        assert attempt["connections"] == 4
        assert attempt["version"] == balancer.view.registry.version("default")
        assert before[found["backend"]] == 1
        assert attempt["backend"] == found["backend"] == attempt["candidates"][0]["id"]
        assert (attempt["status"], found["status"]) == (200, 200)
        assert 0 < attempt["waited"] < found["duration"]
        assert reasons(attempt) == {}
        for backend in (one, two, three):
            backend.hang_up()
        balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_a_killed_backend_and_the_second_try(system: System, worker: str) -> None:
    """A request that failed once is kept, though it was answered and not drawn."""
    with refusing() as dead, Backend() as alive:
        balancer = system.balancer(backends=f"{dead},{alive.url}", worker=worker, env=FAILED)
        for number in range(2):  # in turn: at least one of two meets the dead one
            assert get(balancer.port, f"/{number}").status == 200
        target = next(f"/{n}" for n in range(2) if balancer.logged(f"/{n}").get("tried"))
        found = told(balancer, target)
        first, second = found["attempts"]
        assert found["sampled"] is False
        assert (found["backend"], found["status"]) == (alive.id, 200)
        assert first["outcome"] == "connect_failed"
        assert "refused" in first["detail"]
        assert first["backend"] == dead.removeprefix("http://")
        assert (first["basis"], second["basis"]) == ("worker", "worker")
        assert "in_flight" not in first["candidates"][0]
        assert (second["outcome"], second["backend"]) == ("answered", alive.id)
        assert reasons(second) == {first["backend"]: "tried"}
        assert second["at"] >= first["seconds"]


@pytest.mark.parametrize("worker", KINDS)
def test_a_drawn_request_tells_exactly_of_its_second_try(system: System, worker: str) -> None:
    with Backend() as bad, Backend() as good:
        bad.script = reset_unanswered
        balancer = system.balancer(backends=f"{bad.url},{good.url}", worker=worker, env=ALL)
        for number in range(2):
            assert get(balancer.port, f"/{number}").status == 200
        target = next(f"/{n}" for n in range(2) if balancer.logged(f"/{n}").get("tried"))
        first, second = told(balancer, target)["attempts"]
        assert (first["outcome"], first["basis"], second["basis"]) == ("upstream_closed", "shared", "shared")
        assert reasons(second) == {bad.id: "tried"}
        assert numbers(second) == {good.id: 0}


@pytest.mark.parametrize("worker", KINDS)
def test_who_was_left_out_and_why(system: System, worker: str) -> None:
    with Backend() as full, Backend() as good:
        stopped = [f"http://127.0.0.1:{port}" for port in (9, 10, 11)]
        balancer = system.balancer(
            backends=",".join(
                [
                    *(f"{full.url};max_connections=1", good.url),
                    *(f"{stopped[0]};id=down", f"{stopped[1]};id=drained", f"{stopped[2]};weight=0;id=none"),
                    "http://127.0.0.1:12;backup=true;id=spare",
                ]
            ),
            worker=worker,
            env=ALL,
        )
        registry = balancer.view.registry
        registry.change("default", decide.verdicts([("down", "down")]))
        version = registry.change("default", decide.update("drained", admin="drain")).version
        eventually(
            lambda: Api(balancer)("GET", "/v1/pools").status == 200 and _version_seen(balancer, version),
            "the worker to know",
        )
        full.script = stall
        good.script = serve()
        # By turns: one of two requests is for the one that keeps it.
        with Client(balancer.port) as first, Client(balancer.port) as second:
            for client in (first, second):
                client.send(b"GET /x HTTP/1.1\r\nHost: t.example\r\n\r\n")
            eventually(
                lambda: {s.id: s.in_flight for s in registry.status("default")}[full.id] == 1, "it to be full"
            )
            assert get(balancer.port, "/asked").status == 200
            (attempt,) = told(balancer, "/asked")["attempts"]
        assert reasons(attempt) == {
            full.id: "full",
            "down": "down",
            "drained": "draining",
            "none": "weight 0",
            "spare": "backup",
        }
        assert set(numbers(attempt)) == {good.id}
        full.hang_up()
        balancer.idle()


def _version_seen(balancer: Balancer, version: int) -> bool:
    get(balancer.port, f"/version{version}")
    entry = [one for one in balancer.log if one["target"] == f"/version{version}"]
    if not entry:
        return False
    answer = Api(balancer)("GET", f"/v1/decisions/{entry[-1]['id']}")
    return (
        answer.status == 200
        and f'"version":{version},'.encode() in answer.body
        and b"draining" in answer.body
    )


@pytest.mark.parametrize("worker", KINDS)
@pytest.mark.parametrize(
    ("queue", "code"),
    [
        ({"LB_QUEUE_SIZE": "0"}, "no_backend"),
        ({"LB_QUEUE_TIMEOUT": "0.2"}, "queue_timeout"),
    ],
    ids=["none waits", "none has room in time"],
)
def test_nobody_could_take_it(system: System, worker: str, queue: dict[str, str], code: str) -> None:
    with Backend() as only:
        only.script = stall
        env = {**FAILED, **queue}
        balancer = system.balancer(backends=f"{only.url};max_connections=1", worker=worker, env=env)
        with held(balancer, 1):
            assert get(balancer.port, "/refused").status == 503
            found = told(balancer, "/refused")
        assert (found["status"], found["code"], found.get("backend", "")) == (503, code, "")
        (attempt,) = found["attempts"]
        assert (attempt["backend"], attempt["outcome"], attempt["basis"]) == ("", code, "worker")
        # What the worker holds itself is as much as it knows of who is full.
        (one,) = attempt["candidates"]
        assert (one["id"], one["held"], one["max_connections"]) == (only.id, 1, 1)
        only.hang_up()
        balancer.idle()


def test_two_balancers_tell_of_each_other(system: System) -> None:
    """Any of them, of requests that any worker had; the command line, too."""
    store = system.store()
    with Backend() as backend:
        balancers = [
            system.balancer(store=store.url, backends=backend.url, workers=2, env=ALL) for _ in range(2)
        ]
        for number, balancer in enumerate(balancers):
            assert get(balancer.port, f"/{number}").status == 200
        for number, balancer in enumerate(balancers):
            found = told(balancer, f"/{number}", ask=balancers[1 - number])
            assert found["path"] == f"/{number}"
            shown = balancers[1 - number].lb("explain", found["id"])
            assert f"→ {backend.id}" in shown.stdout
            assert "round-robin" in shown.stdout
        api = Api(balancers[0])
        listed = api.json("GET", "/v1/decisions?pool=default&limit=10")["decisions"]
        assert {one["path"] for one in listed} == {"/0", "/1"}
        assert api.json("GET", "/v1/decisions?failed=true")["decisions"] == []
        shown = balancers[0].try_lb("explain", "nothing")
        assert shown.returncode == 1
        assert shown.stderr.count("\n") == 1
        assert "nothing is known of request 'nothing'" in shown.stderr


@pytest.mark.parametrize("worker", KINDS)
def test_canary_key_and_session(system: System, worker: str) -> None:
    with Backend() as one, Backend() as two:
        balancer = system.balancer(
            backends=f"{one.url},{two.url}",
            worker=worker,
            env={
                **ALL,
                "LB_ALGORITHM": "consistent-hash",
                "LB_HASH_KEY": "header:X-Secret",
                "LB_STICKY_COOKIE": "lb",
            },
        )
        answer = get(balancer.port, "/keyed", "X-Secret: hunter2")
        keyed = told(balancer, "/keyed")
        (attempt,) = keyed["attempts"]
        assert re.fullmatch(r"header:X-Secret #[0-9a-f]{8}", attempt["key"])
        assert "hunter2" not in str(keyed)
        assert (attempt["rule"], attempt["candidates"][0]["named"]) == ("bounded", 1)
        assert attempt["candidates"][0]["id"] == keyed["backend"]
        cookie = answer.values("Set-Cookie")[0].partition(";")[0]
        get(balancer.port, "/again", f"Cookie: {cookie}")
        again = told(balancer, "/again")
        assert (again["home"], again["kept"], again["backend"]) == (keyed["backend"], True, keyed["backend"])
        version = balancer.view.registry.change(
            "default", decide.verdicts([(keyed["backend"], "down")])
        ).version
        moved: dict[str, Any] = {}

        def is_known() -> bool:
            get(balancer.port, f"/moved{len(moved)}", f"Cookie: {cookie}")
            moved[f"/moved{len(moved)}"] = told(balancer, f"/moved{len(moved)}")
            last = list(moved.values())[-1]["attempts"][0]
            return bool(last["version"] == version and reasons(last) == {keyed["backend"]: "down"})

        eventually(is_known, "the worker to know")
        last = list(moved.values())[-1]
        assert last["home"] == keyed["backend"] != last["backend"]
        assert last.get("kept", False) is False
        balancer.view.registry.change("default", decide.verdicts([(keyed["backend"], "up")]))
        balancer.view.registry.change("default", decide.switch("random", 0.5))
        seen: set[tuple[str, bool]] = set()

        def both() -> bool:
            target = f"/canary{len(balancer.log)}"
            get(balancer.port, target)
            (attempt,) = told(balancer, target)["attempts"]
            seen.add((attempt["algorithm"], attempt.get("canary", False)))
            return seen >= {("consistent-hash", False), ("random", True)}

        eventually(both, "both algorithms")


def test_an_answer_that_breaks_and_one_that_is_an_error(system: System) -> None:
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, env=FAILED)
        assert get(balancer.port, "/well").status == 200
        backend.script = serve(answer_of(500))
        assert get(balancer.port, "/error").status == 500
        found = told(balancer, "/error")
        assert (found["status"], found.get("code", ""), found["attempts"][0]["status"]) == (500, "", 500)
        # What was well, and not drawn, came before it and would be there, too.
        assert Api(balancer)("GET", f"/v1/decisions/{balancer.logged('/well')['id']}").status == 404
        backend.script = in_steps(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"half")
        with Client(balancer.port) as client:
            client.send(b"GET /cut HTTP/1.1\r\nHost: t.example\r\n\r\n")
            backend.may_go_on.release(10)
            eventually(lambda: any(one["target"] == "/cut" for one in balancer.log), "it to break")
        found = told(balancer, "/cut")
        assert (found["status"], found["code"]) == (200, "upstream_closed")


@pytest.mark.parametrize("worker", KINDS)
def test_the_field_of_answers(system: System, worker: str) -> None:
    """Off unless it is asked for; then for the networks that are named."""
    with Backend() as backend:
        env = {
            "LB_DECISION_HEADER": "X-LB-Decision",
            "LB_TRUSTED_PROXIES": "127.0.0.1",
            "LB_UPSTREAM_MAX_IDLE": "0",
        }
        quiet = system.balancer(backends=backend.url, worker=worker)
        loud = system.balancer(backends=backend.url, worker=worker, env=env)
        assert values(get(quiet.port)) == []
        (value,) = values(get(loud.port, "/", "X-Request-Id: abc"))
        assert value.startswith('id="abc", pool="default", algorithm="round-robin", version=')
        assert value.endswith(f'backend="{backend.id}"')
        assert values(get(loud.port, "/", "X-Forwarded-For: 192.0.2.7")) == []
        backend.stop_listening()
        answer = get(loud.port, "/gone")
        assert answer.status == 502
        (value,) = values(answer)
        assert f'tried=("{backend.id}")' in value


def values(answer: Answer) -> list[str]:
    return answer.values("X-LB-Decision")


def test_ids_that_clients_bring(system: System) -> None:
    """By the word of a trusted proxy; whatever it is, it names a field of a hash and no key."""
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, env={**ALL, "LB_TRUSTED_PROXIES": "127.0.0.1"})
        get(balancer.port, "/a", "X-Request-Id: some/id+with=signs")
        api = Api(balancer)
        eventually(lambda: api("GET", "/v1/decisions/some%2Fid+with=signs").status == 200, "it to be found")
        get(balancer.port, "/b", "X-Request-Id: " + "x" * 129)
        assert len(balancer.logged("/b")["id"]) < 30
        for strange in ("x" * 129, "%7B%7D", "a%20b", "%0a"):
            assert api("GET", f"/v1/decisions/{strange}").status == 404
        wanted = {b"lb:{default}:decisions", b"lb:{default}:decided"}
        eventually(lambda: set(balancer.view.client.keys("*deci*")) == wanted, "it to be written")


def test_without_the_store(system: System) -> None:
    store = system.store()
    with Backend() as backend:
        balancer = system.balancer(store=store.url, backends=backend.url, env=ALL)
        store.stop()
        eventually(lambda: balancer.readyz()["status"] == "degraded", "it to be noticed")
        assert get(balancer.port, "/alone").status == 200
        found = told(balancer, "/alone")
        assert found["attempts"][0]["basis"] == "worker"
        assert Api(balancer)("GET", "/v1/decisions/nothing").status == 503
        assert Api(balancer)("GET", "/v1/decisions").status == 503
        store.start()
        eventually(lambda: found["id"] in str(Api(balancer)("GET", "/v1/decisions").body), "it to be written")


@pytest.mark.parametrize("worker", KINDS)
def test_one_that_waited_for_room(system: System, worker: str) -> None:
    with Backend() as only:
        only.script = in_steps(answer_of(200, b"late"))
        balancer = system.balancer(backends=f"{only.url};max_connections=1", worker=worker, env=ALL)
        with held(balancer, 1), ThreadPoolExecutor() as pool:
            waiting = pool.submit(get, balancer.port, "/waited")
            eventually(lambda: balancer.view.registry.pool_status("default").queued == 1, "it to wait")
            eventually(lambda: len(only.requests) == 1, "the other to arrive")
            only.script = serve()
            only.may_go_on.release()
            assert waiting.result().status == 200
        found = told(balancer, "/waited")
        (attempt,) = found["attempts"]
        assert (attempt["backend"], attempt["outcome"]) == (only.id, "answered")
        assert attempt["waited"] > 0
