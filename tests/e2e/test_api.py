"""The control API of real balancers, and what it does to the traffic."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.support.clients import Answer, Client, Load, get, request
from tests.support.need import need_binary
from tests.support.processes import Balancer, System
from tests.support.run import ROOT, eventually

KINDS = ["gevent", "gthread"]
TOKEN = "e2e-token"


class Api:
    """A client of one balancer's control listener, on a connection per call."""

    def __init__(self, balancer: Balancer, *fields: str) -> None:
        self.port = balancer.control
        self.fields = fields

    def __call__(self, method: str, path: str, body: object = None, *fields: str) -> Answer:
        """`body` as JSON."""
        data = None if body is None else json.dumps(body).encode()
        kind = () if body is None else ("Content-Type: application/json",)
        with Client(self.port) as client:
            client.send(self.head(method, path, data, *kind, *fields) + (data or b""))
            return client.read_answer(method)

    def head(self, method: str, path: str, data: bytes | None, *fields: str) -> bytes:
        length = () if data is None else (f"Content-Length: {len(data)}",)
        return request(method, path, *length, *self.fields, *fields, host=f"127.0.0.1:{self.port}")

    def json(self, method: str, path: str, body: object = None, wanted: int = 200) -> Any:
        """What it answers, which has the status `wanted`."""
        answer = self(method, path, body)
        assert answer.status == wanted, answer
        return json.loads(answer.body) if answer.body else None


LIST, ALGORITHM = "/v1/pools/default/backends", "/v1/pools/default/algorithm"


@pytest.mark.parametrize("worker", KINDS)
def test_the_life_of_a_backend(system: System, worker: str) -> None:
    """Added, weighed, drained, made ready and removed under load: no request fails."""
    first, second = system.plain_backend(), system.plain_backend()
    balancer = system.balancer(
        backends=first.url, worker=worker, workers=2, env={"LB_ALGORITHM": "weighted-round-robin"}
    )
    api = Api(balancer)
    one = f"{LIST}/{second.id}"
    with Load([balancer.port], 8).running() as load:
        eventually(lambda: load.done > 50, "the load")
        added = api.json("POST", LIST, {"url": second.url, "weight": 1}, 201)
        assert (added["id"], added["state"]) == (second.id, "unknown")
        eventually(lambda: second.counts().get("/", 0) > 20, "traffic to reach the new backend")
        assert api.json("PATCH", one, {"weight": 3})["weight"] == 3
        eventually(lambda: share(system, first, second) > 0.7, "its share to follow its weight")
        assert api.json("PATCH", one, {"admin": "drain"})["state"] == "drain"
        eventually(lambda: gains(second) == 0, "it to get no more")
        assert api.json("PATCH", one, {"admin": "ready", "weight": 1})["state"] == "unknown"
        eventually(lambda: gains(second) > 5, "it to get traffic again")
        assert api.json("GET", one)["requests"] > 0
        api.json("DELETE", one, wanted=204)
        eventually(lambda: gains(second) == 0, "it to get no more")
        done = load.done
        eventually(lambda: load.done > done + 100, "the load to go on")
    assert load.failures == []
    api.json("GET", one, wanted=404)
    balancer.idle()


def gains(backend: Any) -> int:
    """What a backend is given within a moment in which the others serve at least fifty requests."""
    before = backend.counts().get("/", 0)
    threading.Event().wait(0.3)
    return int(backend.counts().get("/", 0) - before)


def share(system: System, first: Any, second: Any) -> float:
    """The second one's share of what comes within a moment."""
    before = [backend.counts().get("/", 0) for backend in (first, second)]
    threading.Event().wait(0.3)
    gained = [
        backend.counts().get("/", 0) - count for backend, count in zip((first, second), before, strict=True)
    ]
    return float(gained[1] / max(1, sum(gained)))


def test_a_switch_reaches_two_balancers(system: System) -> None:
    """From turns to a hash of the address, which sends all of this machine's requests to one backend."""
    store = system.store()
    backends = [system.plain_backend() for _ in range(3)]
    urls = ",".join(backend.url for backend in backends)
    balancers = [system.balancer(store=store.url, backends=urls, workers=2) for _ in range(2)]
    api = Api(balancers[0])
    with Load([balancer.port for balancer in balancers], 16).running() as load:
        eventually(lambda: load.done > 200, "the load")
        told = api.json("PUT", ALGORITHM, {"algorithm": "ip-hash"})
        assert (told["algorithm"], told["canary"]) == ("ip-hash", None)
        threading.Event().wait(1.0)  # what is promised: from then on nobody goes by turns any more
        before, done = [backend.counts().get("/", 0) for backend in backends], load.done
        eventually(lambda: load.done > done + 300, "the load to go on")
        after = [backend.counts().get("/", 0) for backend in backends]
        gained = sorted(late - early for early, late in zip(before, after, strict=True))
        assert gained[0] == gained[1] == 0 < gained[2]
        trial = {"algorithm": "random", "share": 0.5}
        told = Api(balancers[1]).json("PUT", ALGORITHM, {"algorithm": "ip-hash", "canary": trial})
        assert told["canary"] == trial
        eventually(lambda: all(gains(backend) > 0 for backend in backends), "the trial")
        eventually(lambda: len(api.json("GET", "/v1/pools/default")["trial"]) == 2, "the comparison")
    assert load.failures == []
    for balancer in balancers:
        balancer.idle()


def test_reports_change_shares(system: System) -> None:
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(
        backends=",".join(backend.url for backend in backends),
        env={"LB_ALGORITHM": "resource-based", "LB_REPORT_BLACKOUT": "0", "LB_REPORT_PERIOD": "60"},
    )
    api = Api(balancer)
    busy, free = (f"{LIST}/{backend.id}" for backend in backends)
    assert api.json("PATCH", busy, {"report": {"cpu": 0.8}})["share"] == pytest.approx(0.2)
    assert api.json("PATCH", free, {"report": {"running": 2, "capacity": 10}})["share"] == pytest.approx(0.8)
    load = Load([balancer.port], 4, total=500).run()
    assert load.failures == []
    counts = [backend.counts().get("/", 0) for backend in backends]
    assert sum(counts) == 500
    assert counts[1] / 500 == pytest.approx(0.8, abs=0.02)


@contextmanager
def locked(system: System, worker: str = "gevent") -> Iterator[tuple[Balancer, Api]]:
    backend = system.plain_backend()
    balancer = system.balancer(
        backends=backend.url,
        worker=worker,
        env={
            "LB_CONTROL_TOKEN": TOKEN,
            "LB_ALLOWED_BACKENDS": "127.0.0.0/8, ::1",
            "LB_DECISION_SAMPLE": "1",
            "LB_DECISION_RATE": "0",
        },
    )
    yield balancer, Api(balancer, f"Authorization: Bearer {TOKEN}")


@pytest.mark.parametrize("worker", KINDS)
def test_what_is_refused(system: System, worker: str) -> None:
    """Every kind of bad input, on the wire."""
    with locked(system, worker) as (balancer, api):
        bare = Api(balancer)
        answer = bare("GET", "/v1/pools")
        assert (answer.status, answer.values("WWW-Authenticate")) == (401, ["Bearer"])
        assert bare("POST", LIST, {"url": "http://127.0.0.1:1"}).status == 401
        assert bare("GET", "/healthz").status == bare("GET", "/readyz").status == 200
        assert api("POST", LIST, {"url": "http://10.0.0.1:1"}).status == 403
        assert api("POST", LIST, {"url": "http+unix://%2Fx"}).status == 403
        assert api("DELETE", LIST + "/x", None, "Origin: http://evil.example").status == 403
        assert api("GET", "/v1/pools/nothing").status == 404
        answer = api("POST", "/v1/pools")
        assert (answer.status, answer.values("Allow")) == (405, ["GET, HEAD, OPTIONS"])
        assert api("POST", LIST, {"url": "http://127.0.0.1:1", "weight": 5000}).status == 422
        json_ = "Content-Type: application/json"
        with Client(balancer.control) as client:
            for data, fields, wanted in (
                (b"{", (json_,), 400),
                (b"{}", ("Content-Type: text/plain",), 415),
                (b"{}", (), 415),
                (b"", (json_,), 400),
            ):
                client.send(api.head("POST", LIST, data, *fields) + data)
                answer = client.read_answer()
                assert answer.status == wanted
                assert answer.values("Content-Type") == ["application/problem+json"]
        with Client(balancer.control) as client:
            data = b" " * (64 * 1024 + 1)
            client.send(api.head("POST", LIST, data, json_) + data)
            assert client.read_answer().status == 413
        with Client(balancer.control) as client:
            head = api.head("PATCH", f"{LIST}/x", None, json_, "Transfer-Encoding: chunked")
            client.send(head + b'd\r\n{"weight": 1}\r\n0\r\n\r\n')
            assert client.read_answer().status == 404
        assert len(api.json("GET", LIST)["backends"]) == 1


@pytest.mark.parametrize("worker", KINDS)
def test_a_name_that_was_made_to_point_here(system: System, worker: str) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, worker=worker)
    with Client(balancer.control) as client:
        for host, wanted in (
            ("evil.example", 421),
            ("localhost", 200),
            (f"127.0.0.1:{balancer.control}", 200),
        ):
            client.send(request("GET", "/v1/pools", host=host))
            assert client.read_answer().status == wanted


@pytest.mark.parametrize("worker", KINDS)
def test_without_the_store(system: System, worker: str) -> None:
    store = system.store()
    backend = system.plain_backend()
    balancer = system.balancer(store=store.url, backends=backend.url, worker=worker)
    api = Api(balancer)
    assert api.json("GET", LIST)["exact"] is True
    store.stop()
    eventually(lambda: api.json("GET", LIST)["exact"] is False, "the store to be missed")
    answer = api("PATCH", f"{LIST}/{backend.id}", {"weight": 2})
    assert (answer.status, answer.values("Retry-After")) == (503, ["1"])
    assert get(balancer.port).status == 200
    store.start()
    eventually(lambda: api.json("GET", LIST)["exact"], "the store to be back")
    assert api.json("PATCH", f"{LIST}/{backend.id}", {"weight": 2})["weight"] == 2


def test_a_store_that_hangs_does_not_stop_the_traffic(system: System) -> None:
    """A write that waits for the store waits in its own greenlet."""
    store = system.store()
    backend = system.plain_backend()
    balancer = system.balancer(store=store.url, backends=backend.url)
    api = Api(balancer)
    with Load([balancer.port], 8).running() as load:
        eventually(lambda: load.done > 100, "the load")
        store.send(signal.SIGSTOP)
        try:
            # The first requests wait for it, too; then the worker knows.
            eventually(lambda: balancer.readyz()["status"] == "degraded", "it to be noticed")
            done, began = load.done, monotonic()
            assert api("PATCH", f"{LIST}/{backend.id}", {"weight": 2}).status == 503
            assert monotonic() - began > 0.4, "it did not wait for the store"
            assert load.done > done + 50
        finally:
            store.send(signal.SIGCONT)
        eventually(lambda: balancer.readyz()["status"] == "ready", "the store to be in use again")
    assert load.failures == []


def test_the_page_of_the_documentation(system: System) -> None:
    """Its commands are run as they stand there, but for the ports."""
    need_binary("curl", "curl")
    page = (ROOT / "docs/api.md").read_text()
    commands = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("curl ")
    ]
    backends = [system.plain_backend() for _ in range(2)]
    with locked(system) as (balancer, api):
        assert api("POST", LIST, {"url": backends[0].url, "id": "one"}).status == 201
        shown = json.dumps(api.json("GET", "/v1/openapi.json")["paths"])
        get(balancer.port, "/asked")
        request_id = balancer.logged("/asked")["id"]
        for command in commands:
            line = command.replace("127.0.0.1:8001", f"127.0.0.1:{balancer.control}")
            line = line.replace("5f3a9c0e1b7d10000000", request_id)
            line = line.replace("127.0.0.1:9003", backends[1].id).replace("$LB_CONTROL_TOKEN", TOKEN)
            done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=20)
            assert done.returncode == 0, (line, done.stderr, done.stdout)
        for path in json.loads(shown):
            pattern = re.sub(r"\{\w+\}", "[^/ ]+", path) + r"(?:'| |$)"
            assert any(re.search(pattern, command) for command in commands), f"no example of {path}"
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert any(f"-X {method}" in command for command in commands)


def judge(balancer: Balancer, folder: Path, *options: str, config: str = "") -> str:
    """What schemathesis says of requests made from the document, good and bad."""
    (folder / "schemathesis.toml").write_text(config)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run"),
            f"http://127.0.0.1:{balancer.control}/v1/openapi.json",
            *("--header", f"Authorization: Bearer {TOKEN}"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"),
            *("--mode", "all", "--no-color", "--request-timeout", "5"),
            # Not every text of a URL's shape is one that can be registered.
            *("--exclude-checks", "positive_data_acceptance"),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=25,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_it_is_what_its_document_says(system: System, tmp_path: Path) -> None:
    """First with any names; then with those of a pool, a backend and a request that are there."""
    with locked(system) as (balancer, api):
        assert "Tested: 14" in judge(balancer, tmp_path)
        assert api("POST", LIST, {"url": "http://127.0.0.1:9", "id": "one"}).status in (200, 201)
        version = api.json("GET", LIST)["version"]
        get(balancer.port, "/asked")
        known = {"pool": "default", "backend": "one", "request_id": balancer.logged("/asked")["id"]}
        told = judge(
            balancer,
            tmp_path,
            *("--exclude-method", "DELETE"),
            config="[parameters]\n" + "\n".join(f'{name} = "{value}"' for name, value in known.items()),
        )
        assert "Missing test data" not in told
        assert api.json("GET", LIST)["version"] > version + 5, "it changed next to nothing"
        assert balancer.readyz()["status"] == "ready"
