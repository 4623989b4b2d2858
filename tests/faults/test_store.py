"""The store is slow, hangs, refuses, is cut off or replaced: requests go on, and turns are exact again."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis

from tests.faults.crowd import Crowd, asked, exact
from tests.support.chaos import Proxy
from tests.support.clients import Load
from tests.support.processes import Balancer, PlainBackend, Store, System, View
from tests.support.run import eventually

KINDS = ["gevent", "gthread"]


class Site:
    """A balancer with two workers that reaches its store through a proxy."""

    def __init__(self, system: System, worker: str) -> None:
        self.system = system
        self.store = system.store("redis", tcp=True)
        self.backends: list[PlainBackend] = [system.plain_backend() for _ in range(2)]
        self._stack = contextlib.ExitStack()
        self.proxy = self._stack.enter_context(Proxy(("127.0.0.1", self.store.port)))
        self.balancer: Balancer = system.balancer(
            store=f"redis://127.0.0.1:{self.proxy.port}/0",
            backends=",".join(backend.url for backend in self.backends),
            workers=2,
            worker=worker,
            wait=False,
        )
        self.look_at(self.store)
        self.balancer.start()

    def look_at(self, store: Store) -> None:
        """This store is the one whose counts tell, and not through the proxy."""
        if self.balancer.view_ is not None:
            self.balancer.view_.close()
        self.balancer.view_ = View(store.url)

    @property
    def admin(self) -> Any:
        """A client of the store's."""
        return self.balancer.view.client

    def losses(self) -> int:
        """How often a worker has said that the shared state is away."""
        return self.balancer.process.err.count("shared state away")

    def missing(self) -> int:
        """How many workers do without the shared state."""
        return self.losses() + 2 - self.balancer.process.err.count("shared state in use")

    def degraded(self) -> bool:
        """Do both workers know that the store is away, and does `/readyz` say why?"""
        said = self.balancer.readyz()
        return self.missing() == 2 and said["status"] == "degraded" and said["shared_state"] != "ok"

    def back(self) -> bool:
        """Do both workers use the shared state?"""
        return self.missing() == 0 and self.balancer.readyz()["status"] == "ready"

    def exact(self) -> None:
        """All workers share one turn again."""
        exact([self.balancer.port], self.backends, self.balancer)

    @contextlib.contextmanager
    def load(self) -> Iterator[Crowd]:
        """Clients while the block runs, of whose requests none may fail."""
        with Crowd([self.balancer.port]).running() as crowd:
            yield crowd
        assert crowd.failures == []

    def close(self) -> None:
        self.system.close()
        self._stack.close()


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One that all tests share."""
    system = System(tmp_path_factory.mktemp("site"))
    with contextlib.ExitStack() as stack:
        stack.callback(system.close)
        made = Site(system, request.param)
        stack.callback(made.close)
        yield made


# Whatever the store does, for as long as the block runs.


@contextlib.contextmanager
def paused(site: Site, what: str) -> Iterator[None]:
    """It puts off every command, or every one that may write."""
    seconds = 2.5
    began = time.monotonic()
    site.admin.execute_command("CLIENT", "PAUSE", str(round(seconds * 1000)), what)
    try:
        yield
    finally:
        if what == "WRITE":
            site.admin.execute_command("CLIENT", "UNPAUSE")
        else:  # it would put that off, too
            time.sleep(max(0.0, began + seconds - time.monotonic()))


@contextlib.contextmanager
def configured(site: Site, name: str, value: str) -> Iterator[None]:
    before = site.admin.config_get(name)[name]
    site.admin.config_set(name, value)
    try:
        yield
    finally:
        site.admin.config_set(name, before)


@contextlib.contextmanager
def cannot_save(site: Site) -> Iterator[None]:
    """Its last snapshot failed, so it refuses writes."""
    in_the_way = site.store.folder / "dump.rdb"
    in_the_way.mkdir()
    with configured(site, "save", "3600 1000000"):
        site.admin.bgsave()
        eventually(lambda: site.admin.info()["rdb_last_bgsave_status"] == "err", "a snapshot to fail")
        yield
    in_the_way.rmdir()
    site.admin.bgsave()
    eventually(lambda: site.admin.info()["rdb_last_bgsave_status"] == "ok", "a snapshot")


@contextlib.contextmanager
def busy(site: Site) -> Iterator[None]:
    """A script of somebody else's does not end."""
    with configured(site, "busy-reply-threshold", "50"), redis.Redis.from_url(site.store.url) as other:
        connection = other.connection_pool.get_connection()
        connection.send_command("EVAL", "while true do end", 0)
        try:
            yield
        finally:
            site.admin.script_kill()
            with contextlib.suppress(redis.ResponseError):  # it was killed
                connection.read_response()
            connection.disconnect()


@contextlib.contextmanager
def locked(site: Site) -> Iterator[None]:
    """It asks for a password that nobody has told the workers, and has closed their connections."""
    with configured(site, "requirepass", "secret"):
        for kind in ("normal", "pubsub"):
            site.admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        yield


@contextlib.contextmanager
def forbidden(site: Site) -> Iterator[None]:
    """Its user may not run scripts any more."""
    site.admin.execute_command("ACL", "SETUSER", "default", "-@scripting")
    try:
        yield
    finally:
        site.admin.execute_command("ACL", "SETUSER", "default", "+@scripting")


@contextlib.contextmanager
def too_slow(site: Site) -> Iterator[None]:
    """It answers, but later than anybody waits."""
    site.proxy.delay = 1.0
    try:
        yield
    finally:
        site.proxy.delay = 0.0


@contextlib.contextmanager
def silent(site: Site) -> Iterator[None]:
    """Nothing comes through, and nothing says so."""
    site.proxy.silent = True
    try:
        yield
    finally:
        site.proxy.silent = False


FAULTS: dict[str, Callable[[Site], AbstractContextManager[None]]] = {
    "paused": lambda site: paused(site, "ALL"),
    "paused writes": lambda site: paused(site, "WRITE"),
    "too slow": too_slow,
    "silent": silent,
    "out of memory": lambda site: configured(site, "maxmemory", "1"),
    "too few replicas": lambda site: configured(site, "min-replicas-to-write", "1"),
    "cannot save": cannot_save,
    "busy": busy,
    "password": locked,
    "no scripts": forbidden,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_does_not_serve(site: Site, fault: str) -> None:
    """Requests go on, both workers say so once, and all is exact again when it serves again."""
    with site.load() as load:
        load.more(100)
        with FAULTS[fault](site):
            eventually(site.degraded, "it to be noticed")
            said = site.losses()
            load.more(400)
            assert site.losses() == said
        healed = time.monotonic()
        eventually(site.back, "the shared state to be in use")
        back = time.monotonic() - healed
        load.more(200)
    print(f"{load.figures()}, back after {back:.2f} s")
    site.exact()


def test_it_is_slow(site: Site) -> None:
    """Requests wait for it, and each gets its exact turn."""
    said = site.losses()
    site.balancer.idle()
    before = asked(site.backends)
    site.proxy.delay = 0.02
    load = Load([site.balancer.port], 12, total=100, checked=True).run()
    site.proxy.delay = 0.0
    assert load.failures == []
    gained = [now - then for now, then in zip(asked(site.backends), before, strict=True)]
    # A busy machine may take so much longer that the store counts as away.
    assert gained == [50, 50] or site.losses() > said
    print(f"{load.done} requests, slowest {load.slowest:.3f} s")
    site.exact()


def test_it_forgets_everything(site: Site) -> None:
    """FLUSHALL: nobody's connection breaks; the workers write back what they know."""
    with site.load() as load:
        for _ in range(3):
            load.more(100)
            site.admin.flushall()
            eventually(lambda: site.balancer.view.workers() == 2, "both workers to join again")
        load.more(100)
    assert len(site.balancer.view.states()) == 2
    print(load.figures())
    site.exact()


def test_connections_are_cut_in_the_middle_of_an_answer(site: Site) -> None:
    chance = random.Random(5)
    with site.load() as load:
        for turn in range(12):
            load.more(20)
            if turn % 3 == 0:
                site.proxy.reset()
            elif turn % 3 == 1:
                site.proxy.close()
            site.proxy.cut = chance.randrange(1, 400)
        site.proxy.cut = None
        eventually(site.back, "the shared state to be in use")
        load.more(100)
    print(load.figures())
    site.exact()


# Another server takes over.


class Pair:
    """A site whose store has a replica."""

    def __init__(self, system: System, worker: str) -> None:
        self.site = Site(system, worker)
        self.replica = system.store("redis", tcp=True)
        self.admin = redis.Redis.from_url(self.replica.url, decode_responses=True)
        self.site.admin.config_set("repl-diskless-sync-delay", 0)
        self.admin.replicaof("127.0.0.1", str(self.site.store.port))
        eventually(self.in_step, "the replica to be in step")

    def in_step(self) -> bool:
        """Has the replica what the primary has?"""
        return bool(self.admin.info("replication")["master_link_status"] == "up")

    def catch_up(self) -> None:
        """Wait until the replica has what the primary has now."""
        now = self.site.admin.info("replication")["master_repl_offset"]
        eventually(
            lambda: self.admin.info("replication")["slave_repl_offset"] >= now, "the replica to have it all"
        )

    def promote(self) -> None:
        """Make the replica the primary."""
        self.admin.replicaof("NO", "ONE")


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, system: System) -> Iterator[Pair]:
    made = Pair(system, request.param)
    with contextlib.closing(made.admin), contextlib.closing(made.site):
        yield made


def test_a_replica_takes_over_from_a_primary_that_died(pair: Pair) -> None:
    site = pair.site
    with site.load() as load:
        load.more(100)
        known = site.balancer.view.counts()
        pair.catch_up()
        site.store.stop()
        eventually(site.degraded, "it to be noticed")
        said = site.losses()
        site.proxy.target = ("127.0.0.1", pair.replica.port)
        site.look_at(pair.replica)
        load.more(300)
        assert (site.missing(), site.losses()) == (2, said), "a replica was taken for a primary"
        pair.promote()
        promoted = time.monotonic()
        eventually(site.back, "the new primary to be in use")
        back = time.monotonic() - promoted
        load.more(100)
    found = site.balancer.view.counts()
    assert all(found[name] >= known[name] for name in known), "the replica has lost what it had"
    print(f"{load.figures()}, back after {back:.2f} s")
    site.exact()


def test_a_primary_that_lives_on_becomes_the_replica(pair: Pair) -> None:
    """Its connections stay; it refuses writes, and connecting again leads to the new one."""
    site = pair.site
    with site.load() as load:
        load.more(100)
        site.proxy.target = ("127.0.0.1", pair.replica.port)
        pair.promote()
        site.admin.replicaof("127.0.0.1", str(pair.replica.port))
        site.look_at(pair.replica)
        promoted = time.monotonic()
        eventually(lambda: site.losses() >= 2 and site.back(), "the new primary to be in use")
        back = time.monotonic() - promoted
        load.more(100)
    print(f"{load.figures()}, back after {back:.2f} s")
    eventually(lambda: len(pair.admin.client_list("pubsub")) == 2, "both workers to listen to the new one")
    site.exact()
