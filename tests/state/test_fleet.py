"""Workers of a fleet as processes, with greenlets and with threads, on real servers they may lose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lb.model import PoolSettings
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.fleet import Fleet, from_config
from lb.state.lease import LEASE
from lb.state.link import STALL
from lb.state.registry import Registry
from lb.state.threads import ThreadRuntime
from tests.state.pool import Pool, stop
from tests.state.servers import Server
from tests.support.run import clean_env, eventually

ROOT = Path(__file__).parents[2]
NAMES = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003")


class Worker:
    """A worker process; see `tests.state.worker`."""

    def __init__(self, kind: str, url: str, log: Path, names: tuple[str, ...] = NAMES) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.state.worker", kind, url, ",".join(names)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                env=clean_env(),
                text=True,
            )
        try:
            self.info()  # it answers: it has started
        except BaseException:
            self.end()
            raise

    def do(self, what: str, **more: Any) -> Any:
        """Give an order, and wait for its answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.log.read_text()}"
        return json.loads(line)

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = self.do("info")
        return found

    def claim(self, count: int = 1, exclude: tuple[str, ...] = ()) -> list[str]:
        found: list[str] = self.do("claim", count=count, exclude=exclude)
        return found

    def release(self, names: list[str]) -> None:
        self.do("release", names=names)

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


# One kind of server is enough here: what the two do differently is tested below this level.


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        server = Server("valkey", Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server("valkey", tmp_path)
    server.start()
    yield server
    server.stop()


Start = Callable[..., Worker]


@pytest.fixture(params=["green", "threads"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts workers of one kind; they are killed at the end, and none may have logged a traceback."""
    made: list[Worker] = []

    def make(url: str, names: tuple[str, ...] = NAMES) -> Worker:
        made.append(Worker(request.param, url, tmp_path / f"worker{len(made)}.log", names))
        return made[-1]

    yield make
    for worker in made:
        worker.end()
    for worker in made:
        assert "Traceback" not in worker.log.read_text(), worker.log.read_text()


def declare(registry: Registry, *names: str) -> int:
    specs = tuple(BackendSpec(f"http://{name}") for name in names)
    return registry.change("p", decide.declare(PoolConfig(backends=specs))).version


def test_it_joins_and_leaves(start: Start, store_url: str, registry: Registry, pool: Pool) -> None:
    declare(registry, *NAMES)
    worker = start(store_url)
    info = worker.info()
    assert info["shared"]
    assert (info["degraded"], info["degraded_count"]) == ("", 0)
    held = worker.claim(4)
    assert pool.in_flight() == dict(Counter(held))
    worker.do("stop")
    assert pool.in_flight() == {}
    assert pool.client.zcard(pool.keys.workers) == 0


def test_what_was_being_looked_after_is_not_opened_again(
    store_url: str, registry: Registry, pool: Pool
) -> None:
    """Under threads its loop may be in the middle of its work when it leaves."""
    declare(registry, *NAMES)
    fleet = Fleet(store_url, {pool.keys.pool: PoolConfig()}, "w", ThreadRuntime())
    fleet.start()
    try:
        assert pool.client.zcard(pool.keys.workers) == 1
    finally:
        stop(fleet)
    fleet._open(registry, fleet.claims[pool.keys.pool])
    assert pool.client.zcard(pool.keys.workers) == 0
    pool.client.flushall()
    fleet._open(registry, fleet.claims[pool.keys.pool])
    assert registry.version(pool.keys.pool) == 0


def test_workers_share_one_exact_turn(start: Start, store_url: str, registry: Registry, pool: Pool) -> None:
    declare(registry, *NAMES)
    workers = [start(store_url) for _ in range(2)]
    counts: Counter[str] = Counter()
    for number in range(10):
        counts.update(workers[number % 2].do("cycle", clients=7, count=3))
    assert sum(counts.values()) == 210
    assert set(counts.values()) == {70}
    eventually(lambda: not pool.in_flight(), "all connections to be given back")


def test_a_change_reaches_every_worker_in_less_than_a_second(
    start: Start, store_url: str, registry: Registry
) -> None:
    declare(registry, *NAMES)
    workers = [start(store_url) for _ in range(2)]
    took = []
    for names in (NAMES[:1], NAMES[:2], (*NAMES, "127.0.0.1:9004"), NAMES):
        version = declare(registry, *names)
        began = time.monotonic()
        for worker in workers:
            eventually(lambda worker=worker: worker.info()["version"] == version, "the change")  # type: ignore[misc]
            assert worker.info()["backends"] == sorted(names)
        took.append(time.monotonic() - began)
    assert max(took[1:]) < 1  # with the first one they may not have listened yet


def test_a_change_whose_notice_was_lost_is_seen_all_the_same(
    start: Start, store_url: str, registry: Registry, pool: Pool
) -> None:
    declare(registry, *NAMES)
    worker = start(store_url)
    declare(registry, *NAMES)
    pool.client.hincrby(pool.keys.state, "_v", 1)
    eventually(lambda: worker.info()["version"] == 2, "the version")
    message = b'{"from": 7, "v": 8}'  # one was lost before this one
    pool.scripts.commit(pool.keys, 2, message)
    eventually(lambda: worker.info()["version"] == 3, "the version")


def test_a_pool_nobody_has_written_is_written_from_the_configuration(
    start: Start, store_url: str, registry: Registry
) -> None:
    worker = start(store_url)
    assert set(worker.claim(3)) == set(NAMES)
    assert sorted(registry.load("p").backends) == sorted(NAMES)


def test_a_backend_that_nobody_probes_gets_traffic(start: Start, store_url: str, registry: Registry) -> None:
    """It waits for a first probe; the daemon that would have made it has gone."""
    declare(registry, *NAMES)
    checking = tuple(
        msgspec.structs.replace(backend, health="checking")
        for backend in registry.load("p").backends.values()
    )
    registry.change("p", lambda _: decide.Change(put=checking))
    worker = start(store_url)
    eventually(lambda: set(worker.info()["states"].values()) == {"unknown"}, "the backends to be promoted")
    assert set(worker.claim(3)) == set(NAMES)


def test_what_a_dead_worker_held_is_given_back_once(
    start: Start, store_url: str, registry: Registry, pool: Pool
) -> None:
    declare(registry, *NAMES)
    dead, *others = (start(store_url) for _ in range(3))
    dead.claim(5)
    held = others[0].claim(2)
    dead.send(signal.SIGKILL)
    began = time.monotonic()
    eventually(lambda: sum(pool.in_flight().values()) == 2, "its connections to be given back")
    assert time.monotonic() - began < 2 * LEASE
    assert pool.in_flight() == dict(Counter(held))
    assert pool.client.zcard(pool.keys.workers) == 2


def test_a_worker_that_was_only_stopped_counts_again(
    start: Start, store_url: str, registry: Registry, pool: Pool
) -> None:
    declare(registry, *NAMES)
    stopped, other = (start(store_url) for _ in range(2))
    held = stopped.claim(5)
    stopped.send(signal.SIGSTOP)
    eventually(lambda: not pool.in_flight(), "the lease to be reaped")
    stopped.send(signal.SIGCONT)
    more = stopped.claim(1)  # at once: it cannot know yet
    eventually(lambda: sum(pool.in_flight().values()) == 6, "what it holds to be counted again")
    assert pool.in_flight() == dict(Counter(held + more))
    assert stopped.info()["shared"]
    other.claim(1)


# The store goes away.


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_no_store_at_the_start(start: Start, own_server: Server) -> None:
    own_server.stop()
    worker = start(own_server.url)
    assert set(worker.claim(6)) == set(NAMES)
    assert worker.info()["degraded"]
    spent = cpu_seconds(worker.process.pid)
    time.sleep(1)  # a second of life without a store
    assert cpu_seconds(worker.process.pid) - spent < 0.3, "it turns in circles"
    own_server.start()
    eventually(lambda: worker.info()["shared"], "the shared state to be in use")
    with own_server.client() as client:
        assert sum(Pool(client).in_flight().values()) == 6
        assert sorted(Registry(client).load("p").backends) == sorted(NAMES)
    assert worker.info()["degraded"] == ""


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_store_goes_away_and_comes_back(start: Start, own_server: Server, how: str) -> None:
    with own_server.client() as client:
        declare(Registry(client), *NAMES, "127.0.0.1:9004")
    worker = start(own_server.url)
    eventually(lambda: worker.info()["shared"], "the shared state to be in use")
    before = worker.claim(3)
    own_server.stop() if how == "killed" else own_server.send(signal.SIGSTOP)
    first = time.monotonic()
    during = worker.claim(20)
    assert time.monotonic() - first < STALL * 1.25 + 0.5
    then = time.monotonic()
    during += worker.claim(20)
    assert time.monotonic() - then < 0.5
    assert None not in during
    eventually(lambda: worker.info()["degraded"], "it to be noticed")
    worker.release(before)
    worker.release(during[:10])
    own_server.start() if how == "killed" else own_server.send(signal.SIGCONT)
    eventually(lambda: worker.info()["shared"], "the shared state to be in use again")
    held = worker.info()["held"]
    assert sum(held.values()) == 30
    with own_server.client() as client:
        eventually(lambda: Pool(client).in_flight() == held, "the counts to be right")
        # What only this worker remembered is in the store again, also when that had lost it.
        assert sorted(Registry(client).load("p").backends) == sorted([*NAMES, "127.0.0.1:9004"])
    info = worker.info()
    assert (info["degraded"], info["degraded_count"]) == ("", 1)
    log = worker.log.read_text()
    assert log.count("shared state away") == 1
    assert log.count("shared state in use") >= 1
    assert None not in worker.claim(4)


def test_a_store_that_puts_off_writes_keeps_nobody_waiting_again(start: Start, own_server: Server) -> None:
    """It answers what reads, so it seems to be back; who believed that would wait for its first claim."""
    with own_server.client() as client:
        declare(Registry(client), *NAMES)
        worker = start(own_server.url)
        eventually(lambda: worker.info()["shared"], "the shared state to be in use")
        client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
        assert None not in worker.claim(3)
        eventually(lambda: worker.info()["degraded"], "it to be noticed")
        deadline = time.monotonic() + 3.0  # in which it tries to come back at least once
        while time.monotonic() < deadline:
            then = time.monotonic()
            assert None not in worker.claim(1)
            assert time.monotonic() - then < 1.0
        assert worker.info()["degraded_count"] == 1
        client.execute_command("CLIENT", "UNPAUSE")
        eventually(lambda: worker.info()["shared"], "the shared state to be in use again")
        eventually(lambda: Pool(client).in_flight() == worker.info()["held"], "the counts to be right")


def test_a_store_that_was_restarted_empty_gets_the_pool_once(start: Start, own_server: Server) -> None:
    """Two workers restore the same pool: neither undoes what the other did."""
    workers = [start(own_server.url) for _ in range(2)]
    own_server.stop()
    for worker in workers:
        worker.claim(2)
        eventually(lambda worker=worker: worker.info()["degraded"], "it to be noticed")  # type: ignore[misc]
    own_server.start()
    for worker in workers:
        eventually(lambda worker=worker: worker.info()["shared"], "the shared state")  # type: ignore[misc]
    with own_server.client() as client:
        assert Registry(client).load("p").version == 1
        assert sum(Pool(client).in_flight().values()) == 4


def test_a_new_change_is_heard_after_an_outage(start: Start, own_server: Server) -> None:
    """The connection that listens for changes comes back by itself."""
    worker = start(own_server.url)
    own_server.stop()
    worker.claim(1)
    own_server.start()
    eventually(lambda: worker.info()["shared"], "the shared state")
    with own_server.client() as client:
        eventually(lambda: client.pubsub_numsub("lb:{p}:changes")[0][1] == 1, "the listener")
        version = declare(Registry(client), *NAMES[:1])
        began = time.monotonic()
        eventually(lambda: worker.info()["version"] == version, "the change")
        assert time.monotonic() - began < 1


def test_stop_never_fails(start: Start, own_server: Server) -> None:
    worker = start(own_server.url)
    worker.claim(1)
    own_server.stop()
    worker.do("stop")


def test_stop_while_the_store_does_not_answer(start: Start, own_server: Server) -> None:
    worker = start(own_server.url)
    worker.claim(1)
    own_server.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        worker.do("stop")
        assert time.monotonic() - began < 5
    finally:
        own_server.send(signal.SIGCONT)


def test_many_claims_cost_few_calls(store_url: str, registry: Registry, tmp_path: Path) -> None:
    declare(registry, *NAMES)
    worker = Worker("green", store_url, tmp_path / "log")
    try:
        counts = worker.do("cycle", clients=64, count=30)
        assert set(counts.values()) == {640}
        info = worker.info()
        assert info["picks"] == 1920
        assert info["calls"] <= 0.25 * 1920
    finally:
        worker.end()


def test_from_config() -> None:
    snapshot = from_config("p", PoolConfig("least-connections", (BackendSpec("http://h:1", weight=3),)))
    assert snapshot.version == 0
    assert snapshot.settings == PoolSettings("least-connections", configured="least-connections")
    assert snapshot.backends["h:1"].weight == 3
