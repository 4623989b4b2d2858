"""The whole system as processes: balancers, health daemons, stores and plain backends, always ended by id.

A `System` is a folder and everything that was started in it. Its end checks that a balancer that was told
to go went by itself with exit code 0, and that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import redis

from lb.errors import StoreError
from lb.state.embedded import server_binary
from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from lb.state.store import connect, store_url
from tests.support.need import need_binary
from tests.support.run import (
    PATIENCE,
    ROOT,
    Process,
    alive,
    clean_env,
    descendants,
    eventually,
    free_port,
    place,
    program,
)

#: What `-k` is given for each kind of worker; None: what the configuration says.
WORKERS = {"gevent": None, "gthread": "gthread"}


class Store:
    """A real server: "redis" (the system's) or "valkey" (the wheel's), on a unix socket and, where `port` is
    given, on that one of 127.0.0.1. `prefix`: the command that is to start it; `options`: more of its own.
    """

    def __init__(
        self,
        folder: Path,
        kind: str = "valkey",
        port: int = 0,
        prefix: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = port
        self.socket = folder / f"{kind}.sock"
        self.url = f"unix://{self.socket}"
        program = server_binary() if kind == "valkey" else need_binary("redis-server", "redis-server")
        self._command = [
            *(*prefix, program, "--port", str(port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", *options),
        ]
        self._env = os.environ | {"LC_ALL": "C"} | dict(env or {})
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        with (self.folder / "store.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )
        eventually(self._answers, "the store to answer")

    def _answers(self) -> bool:
        with connect(self.url) as client, contextlib.suppress(StoreError, redis.RedisError):
            return bool(client.ping())
        return False

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None


class View:
    """What a store says about the fleet."""

    def __init__(self, url: str) -> None:
        self.client = connect(url)
        self.registry = Registry(self.client)

    def counts(self, pool: str = "default") -> dict[str, int]:
        """Requests by backend."""
        return {status.id: status.requests for status in self.registry.status(pool)}

    def in_flight(self, pool: str = "default") -> int:
        """Connections that are claimed now."""
        return sum(status.in_flight for status in self.registry.status(pool))

    def workers(self, pool: str = "default") -> int:
        """Workers that hold a lease."""
        return int(self.client.zcard(PoolKeys(pool).workers))

    def states(self, pool: str = "default") -> dict[str, str]:
        """The state of each backend."""
        return {status.id: status.state for status in self.registry.status(pool)}

    def script_calls(self) -> int:
        """EVALSHA calls since `CONFIG RESETSTAT`."""
        stats: Any = self.client.info("commandstats")
        return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))

    def close(self) -> None:
        self.client.close()


class Balancer:
    """gunicorn with `lb.app`, on ports of its own."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        store: str = "",
        backends: str = "",
        config: str = "",
        worker: str = "gevent",
        workers: int = 1,
        env: Mapping[str, str] | None = None,
        options: tuple[str, ...] = (),
        stdout: int | None = None,
        launch: bool = True,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.name = name
        self._held = contextlib.ExitStack()
        self.port = self._held.enter_context(free_port())
        self.control = self._held.enter_context(free_port())
        self.store = store
        self.config_path = folder / f"{name}.toml"
        self.config_path.write_text(config)
        self._workers = workers
        #: Where the embedded store lives; a socket's path must be short.
        self.runtime = Path(tempfile.mkdtemp(prefix="lb-e2e-"))
        self.env = clean_env(
            {
                "LB_BIND": f"127.0.0.1:{self.port}",
                "LB_CONTROL_BIND": f"127.0.0.1:{self.control}",
                "LB_WORKERS": str(workers),
                "LB_RUNTIME_DIR": str(self.runtime),
                "LB_CONFIG": str(self.config_path),
                "LB_GRACEFUL_TIMEOUT": "15",
                **({"LB_REDIS_URL": store} if store else {}),
                **({"LB_BACKENDS": backends} if backends else {}),
                **(env or {}),
            }
        )
        kind = WORKERS[worker]
        self._command = [
            *(*prefix, *program("gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))),
            *(("-k", kind) if kind else ()),
            *options,
            "lb.app",
        ]
        #: Did the test end it in another way than by TERM?
        self.ended_badly = False
        #: May there be tracebacks in its log? gunicorn's own workers log one when an answer breaks.
        self.tracebacks = False
        self.view_: View | None = None
        #: The process id of the master that an upgrade has started beside the first one.
        self.successor: int | None = None
        self._stdout = stdout
        self._process: Process | None = None
        if launch:
            self.launch()

    @property
    def process(self) -> Process:
        """The master."""
        assert self._process is not None, "it was not launched"
        return self._process

    def launch(self) -> None:
        """Start it, without waiting; again, if it has ended."""
        if self._process is not None:
            self._process.wait()
        self._process = Process(
            self.folder, self.name, *self._command, env=self.env, cwd=place(self.folder), stdout=self._stdout
        )

    def start(self) -> Balancer:
        """Wait until each of its workers serves and has joined the fleet."""
        self.process.until(self._ready, "the balancer to be ready")
        return self

    def _ready(self) -> bool:
        try:
            return self.readyz()["status"] == "ready" and self.view.workers() >= self._workers
        except (OSError, StoreError):
            return False

    def readyz(self) -> dict[str, Any]:
        """What `/readyz` says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.control}/readyz", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @property
    def view(self) -> View:
        """What its store says."""
        if self.view_ is None:
            self.view_ = View(store_url(self.store, str(self.runtime)))
        return self.view_

    @property
    def pid(self) -> int:
        """The process id of the master."""
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that live."""
        found = []
        for pid in descendants(self.pid):
            with contextlib.suppress(OSError):
                if b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes() and alive(pid):
                    found.append(pid)
        return sorted(found)

    @property
    def store_pid(self) -> int:
        """The process id of its embedded store."""
        return int((self.runtime / "store.pid").read_text())

    def lb(self, *arguments: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run `lb ARGUMENTS` as it would be on this machine; it has to succeed."""
        done = self.try_lb(*arguments, seconds=seconds)
        assert done.returncode == 0, done.stderr
        return done

    def try_lb(self, *arguments: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """The same, which may fail."""
        return subprocess.run(
            program("lb.cli", *arguments),
            capture_output=True,
            text=True,
            env=self.env,
            cwd=place(self.folder),
            timeout=seconds,
        )

    @property
    def log(self) -> list[dict[str, Any]]:
        """The entries of the access log, of whole lines only."""
        lines = self.process.out.split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def logged(self, target: str) -> dict[str, Any]:
        """The entry of the one request for `target`."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [entry for entry in self.log if entry["target"] == target]
            return bool(found)

        eventually(look, f"{target} in the access log")
        assert len(found) == 1, found
        return found[0]

    def idle(self, pool: str = "default") -> None:
        """Wait until nothing is claimed."""
        eventually(lambda: self.view.in_flight(pool) == 0, "all claims to be given back", 15)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        self.process.signal(number)

    def upgrade(self) -> int:
        """USR2: a second master beside the first. Its process id, once its workers have joined the fleet."""
        joined = self.view.workers() + self._workers
        self.send(signal.SIGUSR2)
        self.process.until(lambda: self.view.workers() >= joined, "the new master's workers")
        (self.successor,) = (pid for pid in descendants(self.pid) if descendants(pid))
        return self.successor

    def stop_successor(self) -> None:
        """TERM to the master that an upgrade has started, and wait until it and its workers are gone."""
        assert self.successor is not None
        family = {self.successor, *descendants(self.successor)}
        os.kill(self.successor, signal.SIGTERM)
        eventually(lambda: not any(map(alive, family)), "the new master to end")
        self.successor = None

    def stop(self, seconds: float = PATIENCE) -> int:
        """TERM; returns its exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(seconds)

    def end(self) -> None:
        """End it, whatever state it is in, and look what is left."""
        left = descendants(self.pid) if self._process else set()
        if self.successor is not None:
            left |= {self.successor, *descendants(self.successor)}
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.successor, signal.SIGTERM)
        running = self._process is not None and self._process.process.poll() is None
        try:
            if running:
                code = self.process.end()
                assert code == 0 or self.ended_badly, f"exit code {code}:\n{self.process.err}"
            eventually(lambda: not any(map(alive, left)), "its processes to end", 15)
        finally:
            for pid in left:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            if self.view_ is not None:
                self.view_.close()
            self._held.close()
            leftover = [path for path in self.runtime.rglob("*") if path.is_socket()]
            shutil.rmtree(self.runtime)
        if self._process is not None and not self.ended_badly:
            assert not leftover, f"left behind: {leftover}"
            assert self.tracebacks or "Traceback" not in self.process.err, self.process.err


class System:
    """Everything that one test, or the tests of one module, have started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._names: dict[str, int] = {}

    def _name(self, kind: str) -> str:
        number = self._names[kind] = self._names.get(kind, 0) + 1
        return f"{kind}{number}"

    def balancer(self, *, wait: bool = True, **how: Any) -> Balancer:
        """Start a balancer; see `Balancer` for how."""
        made = Balancer(self.folder, self._name("balancer"), **how)
        self._stack.callback(made.end)
        return made.start() if wait else made

    def store(self, kind: str = "valkey", *, tcp: bool = False, **how: Any) -> Store:
        """Start a store that may be stopped, killed and started again; with `tcp` it has a port, too."""
        folder = Path(tempfile.mkdtemp(prefix="lb-e2e-"))
        self._stack.callback(shutil.rmtree, folder)
        made = Store(folder, kind, self._stack.enter_context(free_port()) if tcp else 0, **how)
        self._stack.callback(made.stop)
        return made

    def process(self, kind: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start `python ARGUMENTS`: a part of the tests."""
        return self._start(kind, (sys.executable, *arguments), env, ROOT)

    def program(
        self, kind: str, module: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a module of the project that is tested."""
        return self._start(kind, program(module, *arguments), env, place(self.folder))

    def _start(
        self, kind: str, command: tuple[str, ...], env: Mapping[str, str] | None, cwd: Path
    ) -> Process:
        made = Process(self.folder, self._name(kind), *command, env=env or clean_env(), cwd=cwd)
        self._stack.callback(made.end)
        return made

    def health(self, balancer: Balancer, interval: float = 0.3) -> Process:
        """Start `lb-health` for a balancer's store."""
        return self.program("health", "lb.health.cli", "--interval", str(interval), env=balancer.env)

    def plain_backend(self, port: int = 0, delay: float = 0.0) -> PlainBackend:
        """Start a backend process that counts its requests, and answers after `delay` seconds."""
        made = PlainBackend(self.process("backend", "-m", "tests.support.counting", str(port), str(delay)))
        made.wait()
        return made

    def report(self) -> str:
        """What the processes have printed, for a test that failed."""
        parts = []
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".out", ".err"):
                lines = path.read_text(errors="replace").splitlines()[-30:]
                parts += [f"--- {path.name}", *lines] if lines else []
        return "\n".join(parts)

    def close(self) -> None:
        """End all of it."""
        self._stack.close()


class PlainBackend:
    """A backend process; see `tests.support.counting`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0

    def wait(self) -> None:
        """Wait until it has said where it listens."""
        self.process.until(lambda: self.process.out.endswith("\n"), "a backend to listen")
        self.port = int(self.process.out)

    @property
    def id(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.id}"

    def counts(self) -> dict[str, int]:
        """Requests by path, without the query; the question itself is not counted."""
        return self._ask("/__counts")

    def most(self) -> dict[str, int]:
        """The most requests that were under way at one time, by path."""
        return self._ask("/__most")

    def silent(self) -> int:
        """Connections that were closed without a word."""
        return self._ask("/__silent").get("connections", 0)

    def fault(self, kind: str) -> None:
        """From now on: "503" answers, "reset" connections, "" neither."""
        self._ask(f"/__fault?{kind}")

    def _ask(self, path: str) -> dict[str, int]:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
        return found

    def kill(self) -> None:
        """Kill -9."""
        self.process.signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def own_system(folder: Path) -> Iterator[System]:
    """A system that is ended at the end of the block."""
    made = System(folder)
    try:
        yield made
    finally:
        made.close()


def refuses(port: int) -> bool:
    """Does nobody listen there?"""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0
