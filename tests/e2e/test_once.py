"""Requests with an `Idempotency-Key`: two balancers on one store carry each out once."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.backends import (
    PATIENCE,
    Backend,
    Peer,
    answer_of,
    chunked,
    close_unanswered,
    head_of,
    ok,
    once,
    serve,
)
from tests.support.clients import Answer, Client, request
from tests.support.processes import Balancer, Store, System
from tests.support.run import eventually

KEY = 'Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324"'
ALICE, BOB = "Authorization: Bearer alice", "Authorization: Bearer bob"
CONFIG = """\
[pools.default]
backends = [{backends}]
idempotency = {{enabled = true, max_body = 1000, max_answer = 2000}}
[pools.off]
backends = [{backends}]
[pools.lenient]
backends = [{backends}]
idempotency = {{enabled = true, store_away = "pass"}}
[[routes]]
host = "off.example"
pool = "off"
[[routes]]
host = "lenient.example"
pool = "lenient"
[[routes]]
path = "/"
pool = "default"
request = {{set = {{Authorization = "the same for all"}}}}
"""


def counting(peer: Peer) -> None:
    """Answers say which request of all this is."""
    while (found := peer.read_request()) is not None:
        number = len(peer.backend.requests)
        peer.send(answer_of(201, b"%d:%b" % (number, found.body), "X-Number: 1", "X-Number: 2"))


def held(peer: Peer) -> None:
    """Answers come when the test lets them."""
    while peer.read_request() is not None:
        assert peer.backend.may_go_on.acquire(timeout=PATIENCE)
        peer.send(ok(b"done"))


class Pair:
    """Two balancers on one store, and a backend behind both."""

    def __init__(self, system: System, worker: str) -> None:
        self.stack = ExitStack()
        self.backend = self.stack.enter_context(Backend(counting))
        self.store: Store = system.store()
        urls = f'{{url = "{self.backend.url}"}}'
        self.worker = worker
        self.both: list[Balancer] = [
            system.balancer(
                store=self.store.url, config=CONFIG.format(backends=urls), workers=2, worker=worker
            )
            for _ in range(2)
        ]
        self.turn = 0

    def call(
        self, method: str = "POST", target: str = "/pay", body: bytes | None = b"1 EUR", *fields: str
    ) -> Answer:
        """Through one balancer and the other in turn."""
        self.turn += 1
        with Client(self.both[self.turn % 2].port) as client:
            return client.call(method, target, body, *(fields or (KEY, ALICE)))

    def close(self) -> None:
        self.stack.close()


@pytest.fixture(params=["gevent", "gthread"])
def pair(request: pytest.FixtureRequest, system: System) -> Iterator[Pair]:
    made = Pair(system, request.param)
    yield made
    made.close()


def problem(answer: Answer) -> tuple[int, str]:
    """Status and code of the balancer's own answer."""
    return answer.status, answer.body.decode().partition(": ")[2].partition(" ")[0]


def test_the_matrix(pair: Pair) -> None:
    first = pair.call()
    assert (first.status, first.body, first.values("X-Number")) == (201, b"1:1 EUR", ["1", "2"])
    assert first.values("Idempotent-Replayed") == []
    for _ in range(4):  # the same again, through either
        again = pair.call()
        assert (again.status, again.body, again.values("X-Number")) == (201, b"1:1 EUR", ["1", "2"])
        assert again.values("Idempotent-Replayed") == ["true"]
        assert again.values("Date") == first.values("Date")
    # Another request with this key: body, path, method.
    assert problem(pair.call("POST", "/pay", b"2 EUR")) == (422, "idempotency_reused")
    assert problem(pair.call("POST", "/other")) == (422, "idempotency_reused")
    assert problem(pair.call("PATCH")) == (422, "idempotency_reused")
    assert len(pair.backend.requests) == 1
    # Somebody else's key is another one, also where a route replaces what tells them apart.
    assert pair.call("POST", "/pay", b"1 EUR", KEY, BOB).body == b"2:1 EUR"
    assert pair.call("POST", "/pay", b"1 EUR", KEY).body == b"3:1 EUR"
    assert pair.call("POST", "/pay", b"1 EUR", KEY, "Cookie: session=a").body == b"4:1 EUR"
    assert pair.call("POST", "/pay", b"1 EUR", KEY, "Cookie: session=b").body == b"5:1 EUR"
    # Without one, with another, and of methods that nobody asked about, as ever.
    for number, fields in enumerate([(ALICE,), ("Idempotency-Key: other", ALICE)], 6):
        assert pair.call("POST", "/pay", b"1 EUR", *fields).body == b"%d:1 EUR" % number
    for number in (8, 9):
        assert pair.call("PUT").body == b"%d:1 EUR" % number
    # The quotes are no part of it.
    assert pair.call("POST", "/pay", b"1 EUR", KEY.replace('"', ""), ALICE).body == b"1:1 EUR"
    assert pair.backend.requests[0].values("Idempotency-Key") == [KEY.partition(" ")[2]]


def test_bodies_in_chunks_and_after_a_100(pair: Pair) -> None:
    head = request("POST", "/c", KEY, ALICE, "Transfer-Encoding: chunked", "Expect: 100-continue")
    for turn in range(2):
        with Client(pair.both[turn].port) as client:
            client.send(head)
            if pair.worker == "gevent":
                assert client.read_head().startswith(b"HTTP/1.1 100 ")
            client.send(chunked(b"ab", b"cd"))
            assert client.read_answer("POST").body == b"1:abcd"
    (found,) = pair.backend.requests
    assert (found.body, found.values("Expect")) == (b"abcd", [])
    # Of an empty one there is the end only, and the connection can be used again.
    with Client(pair.both[0].port) as client:
        for number in (2, 3):
            key = f"Idempotency-Key: {number}"
            client.send(request("POST", "/c", key, "Transfer-Encoding: chunked") + chunked())
            assert client.read_answer("POST").body == b"%d:" % number
    assert pair.backend.connections <= 2  # one of each worker that was asked


def test_what_is_too_large(pair: Pair) -> None:
    assert problem(pair.call("POST", "/large", b"x" * 1001)) == (413, "idempotency_body_too_large")
    with Client(pair.both[0].port) as client:
        client.send(request("POST", "/large", KEY, ALICE, "Transfer-Encoding: chunked"))
        client.send(chunked(b"x" * 900, b"x" * 900))
        assert problem(client.read_answer("POST")) == (413, "idempotency_body_too_large")
    assert len(pair.backend.requests) == 0
    for target, large in (
        ("/a", ok(b"y" * 300_000)),
        ("/b", head_of(200, "Transfer-Encoding: chunked") + chunked(*[b"y" * 1000] * 300)),
    ):
        pair.backend.script = serve(large)
        pair.backend.hang_up()
        key = f"Idempotency-Key: {target}"
        assert pair.call("POST", target, b"", key).body == b"y" * 300_000
        assert problem(pair.call("POST", target, b"", key)) == (409, "idempotency_not_kept")
    assert len(pair.backend.requests) == 2


@pytest.mark.parametrize("text", ["", '""', "a b", "x" * 256, "one\r\nIdempotency-Key: two"])
def test_what_is_no_key(own_pair: Pair, text: str) -> None:
    answer = own_pair.call("POST", "/pay", b"", f"Idempotency-Key: {text}")
    assert problem(answer) == (400, "idempotency_key_invalid")
    assert len(own_pair.backend.requests) == 0


@pytest.fixture
def own_pair(system: System) -> Iterator[Pair]:
    made = Pair(system, "gevent")
    yield made
    made.close()


def test_while_it_runs(pair: Pair) -> None:
    pair.backend.script = held
    with Client(pair.both[0].port) as client:
        client.send(request("POST", "/pay", KEY, ALICE, "Content-Length: 1") + b"x")
        eventually(lambda: pair.backend.requests, "the first to run")
        for _ in range(2):
            assert problem(pair.call("POST", "/pay", b"x")) == (409, "idempotency_running")
            assert problem(pair.call("POST", "/pay", b"y")) == (422, "idempotency_reused")
        pair.backend.may_go_on.release()
        assert client.read_answer("POST").body == b"done"
    assert pair.call("POST", "/pay", b"x").body == b"done"
    assert len(pair.backend.requests) == 1


def test_a_hundred_at_once(pair: Pair) -> None:
    """One is carried out; the others are told so, or get its answer."""
    found: list[Answer] = []
    gate = threading.Barrier(100)

    def run(number: int) -> None:
        with Client(pair.both[number % 2].port) as client:
            gate.wait(PATIENCE)
            found.append(client.call("POST", "/pay", b"1 EUR", KEY, ALICE))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pair.backend.requests) == 1
    statuses = Counter(answer.status for answer in found)
    assert statuses[201] + statuses[409] == 100
    assert statuses[201] >= 1
    assert {answer.body for answer in found if answer.status == 201} == {b"1:1 EUR"}
    assert sum(not a.values("Idempotent-Replayed") for a in found if a.status == 201) == 1


def test_who_went_away_comes_back_for_the_answer(pair: Pair) -> None:
    pair.backend.script = held
    with Client(pair.both[0].port) as client:
        client.send(request("POST", "/pay", KEY, ALICE, "Content-Length: 1") + b"x")
        eventually(lambda: pair.backend.requests, "the first to run")
        client.reset()
    # Whoever had noticed that would have given up by now: an ordinary request shows it.
    with Client(pair.both[0].port) as client:
        client.send(request("GET", "/gone"))
        eventually(lambda: len(pair.backend.requests) == 2, "another one to run")
        client.reset()
    if pair.worker == "gevent":
        assert pair.both[0].logged("/gone")["code"] == "client_gone"
    pair.backend.may_go_on.release(2)

    def kept() -> bool:
        return pair.call("POST", "/pay", b"x").status == 200

    eventually(kept, "the answer to be kept")
    again = pair.call("POST", "/pay", b"x")
    assert (again.body, again.values("Idempotent-Replayed")) == (b"done", ["true"])
    assert [one.method for one in pair.backend.requests].count("POST") == 1


def test_a_requests_time_does_not_end_it_and_ends_the_next(system: System) -> None:
    """On one connection: what is begun is carried out, and a request without a key is one like any other."""
    with Backend(held) as backend:
        config = CONFIG.format(backends=f'{{url = "{backend.url}"}}')
        balancer = system.balancer(config=config, env={"LB_CLIENT_REQUEST_TIMEOUT": "0.5"})
        with Client(balancer.port) as keyed, Client(balancer.port) as plain:
            keyed.send(request("POST", "/pay", KEY, "Content-Length: 1") + b"x")
            eventually(lambda: backend.requests, "the one with a key to run")
            # This one began later, so the other one's time is over when its own is.
            assert problem(plain.call("GET", "/slow"))[0] == 504
            backend.may_go_on.release()
            assert keyed.read_answer("POST").body == b"done"
            assert problem(keyed.call("GET", "/slow"))[0] == 504
        backend.may_go_on.release(10)


def test_answers_that_are_not_the_last_word(pair: Pair) -> None:
    pair.backend.script = serve(answer_of(503, b"later"))
    assert pair.call().status == 503
    pair.backend.hang_up()
    pair.backend.script = close_unanswered
    assert problem(pair.call()) == (502, "upstream_closed")
    pair.backend.script = serve(answer_of(500, b"broken"))
    assert pair.call().status == 500
    pair.backend.script = counting
    assert pair.call().body == b"broken"  # that is one


def test_an_answer_that_breaks_off_was_one(pair: Pair) -> None:
    """It was carried out, whatever came of its answer: nobody may do it again."""
    pair.both[0].tracebacks = pair.worker == "gthread"
    pair.backend.script = once(head_of(201, "Content-Length: 100") + b"half")
    with Client(pair.both[0].port) as client:
        client.send(request("POST", "/pay", KEY, ALICE, "Content-Length: 1") + b"x")
        assert not client.read_answer("POST").complete
    pair.backend.script = counting
    assert problem(pair.call("POST", "/pay", b"x")) == (409, "idempotency_not_kept")
    assert len(pair.backend.requests) == 1


def test_it_may_be_tried_on_another_backend(system: System) -> None:
    """The client says that it can be repeated, so a backend that breaks it off costs no answer."""
    with Backend(close_unanswered) as bad, Backend(counting) as good:
        urls = ", ".join(f'{{url = "{one.url}"}}' for one in (bad, good))
        balancer = system.balancer(config=CONFIG.format(backends=urls))
        with Client(balancer.port) as client:
            for turn in range(6):
                key = f"Idempotency-Key: {turn}"
                assert client.call("POST", "/pay", b"x", key).status == 201
        assert len(bad.requests) >= 3
        assert len(good.requests) == 6


def test_where_it_is_off_a_key_is_a_field_like_any_other(own_pair: Pair) -> None:
    for number in (1, 2):
        with Client(own_pair.both[0].port) as client:
            client.send(request("POST", "/x", KEY, "Content-Length: 1", host="off.example") + b"x")
            assert client.read_answer("POST").body == b"%d:x" % number


def test_the_worker_is_killed_in_between(pair: Pair) -> None:
    """What it was at counts as running until its lease has lapsed; then the client may try again."""
    with Client(pair.both[0].port) as client:
        stalled = threading.Event()

        def stall(peer: Peer) -> None:
            if peer.read_request() is not None:
                stalled.set()
                peer.wait_closed()

        pair.backend.script = stall
        client.send(request("POST", "/pay", KEY, ALICE, "Content-Length: 1") + b"x")
        assert stalled.wait(PATIENCE)
        pair.backend.script = counting
        pair.both[0].ended_badly = True
        for pid in pair.both[0].worker_pids:
            os.kill(pid, signal.SIGKILL)
    pair.turn = 0
    with Client(pair.both[1].port) as client:
        assert problem(client.call("POST", "/pay", b"x", KEY, ALICE)) == (409, "idempotency_running")
        answers: list[Answer] = []

        def served() -> bool:
            answers.append(client.call("POST", "/pay", b"x", KEY, ALICE))
            return answers[-1].status == 201

        eventually(served, "the lease to lapse", 30)
        assert {answer.status for answer in answers[:-1]} <= {409}
    assert len(pair.backend.requests) == 2
    assert pair.call("POST", "/pay", b"x").values("Idempotent-Replayed") == ["true"]
    assert len(pair.backend.requests) == 2


def test_without_the_store_nothing_is_carried_out(pair: Pair) -> None:
    assert pair.call().status == 201
    pair.store.stop()
    for one in pair.both:
        eventually(lambda one=one: one.readyz()["status"] == "degraded", "it to be noticed")  # type: ignore[misc]
    for _ in range(4):
        answer = pair.call()
        assert problem(answer) == (503, "idempotency_unavailable")
        assert answer.values("Retry-After") == ["1"]
    assert len(pair.backend.requests) == 1
    with Client(pair.both[0].port) as client:
        client.send(request("POST", "/x", KEY, "Content-Length: 1", host="lenient.example") + b"x")
        assert client.read_answer("POST").status == 201
        assert client.call("POST", "/pay", b"x").status == 201  # without a key


def test_the_store_goes_while_it_runs(pair: Pair) -> None:
    """The answer is given, and kept as soon as that can be done."""

    pair.backend.script = held
    with Client(pair.both[0].port) as client:
        client.send(request("POST", "/pay", KEY, ALICE, "Content-Length: 1") + b"x")
        eventually(lambda: pair.backend.requests, "the first to run")
        pair.store.send(signal.SIGSTOP)
        try:
            pair.backend.may_go_on.release()
            assert client.read_answer("POST").body == b"done"
        finally:
            pair.store.send(signal.SIGCONT)

    answers: list[Answer] = []

    def again() -> bool:
        answers.append(pair.call("POST", "/pay", b"x"))
        return answers[-1].status == 200

    eventually(again, "the answer to be kept")
    assert answers[-1].body == b"done"
    # Until then nobody could tell, or it was known to run.
    assert {answer.status for answer in answers[:-1]} <= {409, 503}
    assert len(pair.backend.requests) == 1


def test_the_log_tells(own_pair: Pair) -> None:
    def entries() -> list[dict[str, object]]:
        return [entry for one in own_pair.both for entry in one.log if entry["target"] == "/told"]

    for body in (b"x", b"x", b"y"):
        own_pair.call("POST", "/told", body)
    eventually(lambda: len(entries()) == 3, "the entries")
    first, again, other = sorted(entries(), key=lambda entry: str(entry.get("code", "")))
    assert {entry["pool"] for entry in (first, again, other)} == {"default"}
    assert (other["status"], other["code"]) == (422, "idempotency_reused")
    assert first["backend"] == own_pair.backend.id
    assert (again["status"], again["code"], again["bytes"]) == (201, "idempotency_replayed", 3)
    assert "backend" not in again
