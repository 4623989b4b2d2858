"""This balancer, started as a user starts it, with one worker.

All of its processes are on the proxies' core, the store included: it is the whole product that is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

import lb
from loadtest import system
from loadtest.bench.binaries import Programs
from loadtest.bench.site import Running, Site
from loadtest.procs import Child, answers, free_ports, pin_tree

NAME = "lb"
"""The balancer as it is installed where its hot path is compiled: the one that is judged."""
PURE = "lb-pure"
"""The same without the compiler."""
SCRIPT_COMMANDS = ("eval", "evalsha", "fcall", "eval_ro", "evalsha_ro", "fcall_ro")


@dataclass(frozen=True)
class StoreCounts:
    """What the store has executed since it started.

    `scripts`: calls of scripts and functions, each one command on the wire. `commands`:
    everything, what the scripts execute inside included.
    """

    scripts: int
    commands: int

    def since(self, before: StoreCounts) -> StoreCounts:
        """The difference to an earlier look."""
        return StoreCounts(self.scripts - before.scripts, self.commands - before.commands)


class Store:
    """The shared state that the balancer under test uses, looked at from outside."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return int(self._client.info("server")["process_id"])

    def counts(self) -> StoreCounts:
        """What it has executed so far; the looks themselves are two commands each."""
        by_command = self._client.info("commandstats")
        scripts = sum(int(by_command.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in SCRIPT_COMMANDS)
        return StoreCounts(scripts, int(self._client.info("stats")["total_commands_processed"]))


@dataclass
class Balancer:
    """Gunicorn with this balancer's application and a health daemon; a `bench.site.Proxy`.

    `settings` are environment variables on top of those that the bench sets itself.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    name: str = NAME
    python: Path | None = None
    """The interpreter of an environment that has the balancer installed; None: this source tree."""
    store: Store | None = None
    pinning: dict[str, int] = field(default_factory=dict)
    """Core by role, as read back from the kernel after the start."""

    def missing(self, programs: Programs) -> str | None:
        """One line when the environment to be measured is not there; this source tree always is."""
        del programs
        if self.python is not None and not self.python.is_file():
            return f"{self.name} is not installed: there is no {self.python}"
        return None

    def start(self, site: Site) -> Running:
        """Start gunicorn and the health daemon, pin them, and return once a request is answered."""
        port, control = free_ports(2)
        runtime = site.folder / self.name / "run"
        runtime.parent.mkdir()
        env = {
            **system.environment(
                backends=site.backends, port=port, control=control, workers=1, runtime=runtime
            ),
            **self.settings,
        }
        where = system.Installed(self.python, runtime.parent) if self.python else system.SOURCE_TREE
        master = where.start_gunicorn(site.children, env, name=self.name, core=site.proxy_core)
        master.require(lambda: answers(port), f"an answer on port {port}")
        health = where.start_health(
            site.children, env, interval=10, name=f"{self.name}-health", core=site.proxy_core
        )
        self.store = Store(self._client(env, runtime))
        pids = self._pin(master, health, site)
        # The health daemon keeps traffic from a backend until it has probed it.
        health.require(lambda: system.backends_up(control), "a good probe of every backend")
        return Running(self.name, lb.__version__, port, master, master.output, pids)

    @staticmethod
    def _client(env: Mapping[str, str], runtime: Path) -> redis.Redis:
        url = env.get("LB_REDIS_URL")
        return redis.Redis.from_url(url) if url else redis.Redis(unix_socket_path=str(runtime / "store.sock"))

    def _pin(self, master: Child, health: Child, site: Site) -> tuple[int, ...]:
        """Pin every process, each by its role, and return their ids."""
        assert self.store is not None
        roles = {"master": master.pid, "health daemon": health.pid}
        if "LB_REDIS_URL" not in self.settings:  # else it is somebody else's server
            roles["store"] = self.store.pid
        workers = [
            child.pid
            for child in psutil.Process(master.pid).children()
            if child.pid not in roles.values() and child.name().startswith(("python", "gunicorn"))
        ]
        roles |= {f"worker {number}": pid for number, pid in enumerate(workers, 1)}
        for pid in roles.values():
            pin_tree(pid, site.proxy_core)
        self.pinning = {
            role: core for role, pid in roles.items() for core in psutil.Process(pid).cpu_affinity()
        }
        return tuple(roles.values())
