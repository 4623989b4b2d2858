from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend, Script, deaf, refusing, serve
from tests.support.clients import Client
from tests.support.processes import Balancer, System

SYSTEMS = pytest.StashKey[list[System]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Show what the processes have printed when a test failed."""
    report = yield
    if report.failed:
        for name in ("system", "site", "request"):
            found = getattr(item, "funcargs", {}).get(name)
            system = getattr(found, "system", found)
            if isinstance(system, System):
                report.sections.append(("processes", system.report()))
    return report


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """Where a test starts what it needs; all of it is ended afterwards."""
    made = System(tmp_path)
    yield made
    made.close()


class Site:
    """One balancer that all tests of a module share, and a pool for each way in which backends behave.

    The name in the Host field chooses the pool: `t.example` has one backend, `two.example` two, and so on.
    Connections to backends are not kept, save in the pool `kept.example`. Nobody is ejected: what one test
    lets its backends do is nothing to the next.
    """

    HOSTS = {
        "t.example": "default",
        "two.example": "two",
        "kept.example": "kept",
        "brisk.example": "brisk",
        "none.example": "none",
        "refused.example": "refused",
        "mixed.example": "mixed",
        "deaf.example": "deaf",
    }

    def __init__(self, system: System, worker: str) -> None:
        self.system = system
        self.worker = worker
        self._stack = ExitStack()
        self.one, self.first, self.second, self.kept, self.brisk, self.good = (
            self._stack.enter_context(Backend()) for _ in range(6)
        )
        dead = [self._stack.enter_context(refusing()) for _ in range(2)]
        members = {
            "default": [self.one.url],
            "two": [self.first.url, self.second.url],
            "kept": [self.kept.url],
            "brisk": [self.brisk.url],
            "none": [],
            "refused": dead,
            "mixed": [dead[0], self.good.url],
            "deaf": [self._stack.enter_context(deaf())],
        }
        lines = []
        for pool, urls in members.items():
            backends = ", ".join(f'{{url = "{url}"}}' for url in urls)
            lines += [
                f"[pools.{pool}]",
                f"backends = [{backends}]",
                f"upstream = {{max_idle = {10 if pool == 'kept' else 0}}}",
                "outlier = {enabled = false}",
                f"timeouts = {{connect = 0.4, response = {0.5 if pool == 'brisk' else 20}, idle = 2}}",
            ]
        for host, pool in self.HOSTS.items():
            lines += ["[[routes]]", f'host = "{host}"', f'pool = "{pool}"']
        self.balancer: Balancer = system.balancer(
            worker=worker,
            config="\n".join(lines),
            env={"LB_CLIENT_IDLE_TIMEOUT": "3", "LB_CLIENT_HALF_CLOSE": "1"},
        )
        self.balancer.tracebacks = worker == "gthread"

    @property
    def port(self) -> int:
        return self.balancer.port

    def client(self) -> Client:
        """A connection to the data listener."""
        return Client(self.port)

    def backends(self) -> list[Backend]:
        return [self.one, self.first, self.second, self.kept, self.brisk, self.good]

    def reset(self) -> None:
        """As if nothing had happened yet."""
        for backend in self.backends():
            backend.hang_up()
            backend.script = serve()
            backend.requests.clear()
            backend.connections = 0
            backend.may_go_on = threading.Semaphore(0)
            backend.closed = threading.Semaphore(0)

    def check(self) -> None:
        """Nothing is claimed any more, and no backend was asked for what it was not made for."""
        for backend in self.backends():
            backend.hang_up()
            backend.may_go_on.release(100)
        for pool in set(self.HOSTS.values()):
            self.balancer.idle(pool)
        for backend in self.backends():
            errors, backend._errors[:] = backend._errors[:], []
            assert not errors, errors

    def serve(self, script: Script) -> Backend:
        """Let the backend of `t.example` follow a script from now on."""
        self.one.script = script
        return self.one

    def close(self) -> None:
        self._stack.close()


def make_site(folder: Path, worker: str) -> Iterator[Site]:
    system = System(folder)
    site = Site(system, worker)
    try:
        yield site
    finally:
        try:
            system.close()
        finally:
            site.close()


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def any_site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same site with each kind of worker."""
    yield from make_site(tmp_path_factory.mktemp("site"), request.param)


@pytest.fixture(scope="module")
def own_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site with this project's own worker."""
    yield from make_site(tmp_path_factory.mktemp("site"), "gevent")
