"""Real processes for the tests: a store, and health daemons on it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import redis

from lb.errors import StoreError
from lb.health.engine import Engine
from lb.health.keeper import Keeper
from lb.health.policy import Overrides
from lb.health.report import Log
from lb.model import Backend, Health, HealthPolicy, PoolSettings, Snapshot, backend_id
from lb.settings import BackendSpec, PoolConfig
from lb.state import decide
from lb.state.embedded import server_binary
from lb.state.registry import Registry
from lb.state.store import SOCKET, connect, store_url
from tests.health.backends import Scripted, eventually

HEALTH = {"timeout": 1.0, "rise": 2, "fall": 2}


class Store:
    """A server on the socket of the embedded store in `directory`, without persistence."""

    def __init__(self, directory: Path, binary: str = "") -> None:
        self.directory = directory
        self.socket = directory / SOCKET
        self.url = store_url("", directory)
        self._binary = binary or server_binary()
        self._process: subprocess.Popen[bytes] | None = None
        self.client = connect(self.url)
        self.registry = Registry(self.client)

    def start(self) -> None:
        command = [
            self._binary,
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(command, cwd=self.directory, stdout=subprocess.DEVNULL)
        eventually(self.answers)

    def answers(self) -> bool:
        """the store answers"""
        try:
            return bool(self.client.ping())
        except (StoreError, redis.RedisError):
            return False

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.close()
        self.socket.unlink(missing_ok=True)

    # The fleet, as workers and the CLI would change it.

    def declare(self, *backends: Scripted | str, pool: str = "default", **health: Any) -> Snapshot:
        """Make the pool's backends of the file these."""
        urls = [one if isinstance(one, str) else one.url for one in backends]
        policy = HealthPolicy(**{**HEALTH, **health})
        config = PoolConfig(backends=tuple(BackendSpec(url) for url in urls), health=policy)
        return self.registry.change(pool, decide.declare(config))

    def add(self, backend: Scripted | str, pool: str = "default") -> Snapshot:
        url = backend if isinstance(backend, str) else backend.url
        return self.registry.change(pool, decide.add(Backend(backend_id(url), url)))

    def health(self, backend: Scripted | str, pool: str = "default") -> str:
        name = backend if isinstance(backend, str) else backend.id
        known = self.registry.load(pool).backends.get(name)
        return known.health if known else "absent"

    def healths(self, pool: str = "default") -> list[str]:
        return sorted(one.health for one in self.registry.load(pool).backends.values())

    def wait(
        self, backend: Scripted | str, health: Health, within: float = 10.0, pool: str = "default"
    ) -> float:
        """Wait until `backend` is `health`; return how many seconds that took."""
        started = time.monotonic()
        eventually(lambda: self.health(backend, pool) == health, within)
        return time.monotonic() - started

    def settings(self, pool: str = "default", **health: Any) -> None:
        """Change the pool's policy."""
        policy = HealthPolicy(**{**HEALTH, **health})
        self.registry.change(pool, lambda _: decide.Change(settings=PoolSettings("round-robin", policy)))


def owner_of(store: Store) -> str:
    """Who has the health lease, "" for nobody."""
    return store.registry.health_owner() or ""


class Daemon:
    """`lb-health` as a process, its log in a file."""

    def __init__(self, directory: Path, *options: str, interval: float = 0.3, name: str = "a") -> None:
        self.log = directory / f"health-{name}.log"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("LB_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lb.health.cli", "--runtime-dir", str(directory), "--interval",
                 str(interval), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
            )  # fmt: skip

    def lines(self, *words: str) -> list[str]:
        """The lines that hold all of `words`."""
        return [line for line in self.log.read_text().splitlines() if all(word in line for word in words)]

    def says(self, *words: str, within: float = 10.0) -> str:
        """Wait for a line that holds all of `words`."""
        return eventually(lambda: self.lines(*words), within)[0]

    def events(self) -> list[dict[str, Any]]:
        """The log of a daemon that was started with --json."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM, within: float = 5.0) -> int:
        """Ask it to end; return its exit status."""
        self.send(number)
        return self.process.wait(within)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Local:
    """The loops of a daemon as greenlets of this process."""

    def __init__(self, store: Store, overrides: Overrides, owner: str) -> None:
        self.owner = owner
        self.out = io.StringIO()
        log = Log(stream=self.out)
        self.keeper = Keeper(lambda: Registry(connect(store.url)), owner, overrides, log)
        self.engine = self.keeper.engine = Engine(self.keeper.may_probe, self.keeper.notice, log, 64, {})
        self.loops = [gevent.spawn(self.engine.run), gevent.spawn(self.keeper.run)]

    def lines(self, *words: str) -> list[str]:
        """The lines of the log that hold all of `words`."""
        return [line for line in self.out.getvalue().splitlines() if all(word in line for word in words)]

    def says(self, *words: str, within: float = 10.0) -> str:
        """Wait for a line that holds all of `words`."""
        return eventually(lambda: self.lines(*words), within)[0]

    def end(self) -> None:
        """End as on a signal."""
        self.loops[0].kill()
        self.keeper.stop()
        self.loops[1].join(5)
        assert self.loops[1].ready()

    def kill(self) -> None:
        """End without a farewell."""
        gevent.killall(self.loops)
        self.engine.clear()
