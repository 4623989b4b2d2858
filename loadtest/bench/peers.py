"""The other balancers: how each is started. Their configurations are the files in `templates/`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.binaries import Programs, version
from loadtest.bench.site import Running, Site, render
from loadtest.procs import answers, free_ports


@dataclass(frozen=True)
class Peer:
    """One of the other balancers; a `bench.site.Proxy`.

    `arguments` makes them from the configuration's path and the proxy's folder. One that
    logs to standard output (`log_is_output`) has it redirected to a file.
    """

    name: str
    template: str
    arguments: Callable[[Path, Path], list[str | Path]]
    log_is_output: bool = False

    def missing(self, programs: Programs) -> str | None:
        """One line that says what brings the program, when it is not installed."""
        return None if programs.find(self.name) else programs.hint(self.name)

    def start(self, site: Site) -> Running:
        """Start it on the proxies' core, in front of the site's backends."""
        program = site.programs.require(self.name)
        (port,) = free_ports(1)
        folder = site.folder / self.name
        folder.mkdir()
        log = site.folder / f"{self.name}.out" if self.log_is_output else folder / "access.log"
        first, second = site.backends
        conf = render(
            self.template,
            folder / self.template,
            dir=folder,
            log=log,
            listen=port,
            port1=first,
            port2=second,
        )
        child = site.children.start(
            self.name,
            [program, *self.arguments(conf, folder)],
            core=site.proxy_core,
            # One thread for Caddy's code, and its state not in the user's home.
            env={
                **os.environ,
                "GOMAXPROCS": "1",
                "XDG_DATA_HOME": str(folder),
                "XDG_CONFIG_HOME": str(folder),
            },
        )
        child.require(lambda: answers(port), f"an answer on port {port}")
        pids = tuple(process.pid for process in child.family())
        return Running(self.name, version(program), port, child, log, pids)


def _nginx(conf: Path, folder: Path) -> list[str | Path]:
    return ["-p", folder, "-c", conf]


def _haproxy(conf: Path, _folder: Path) -> list[str | Path]:
    return ["-db", "-f", conf]


def _envoy(conf: Path, _folder: Path) -> list[str | Path]:
    return ["-c", conf, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]


def _caddy(conf: Path, _folder: Path) -> list[str | Path]:
    return ["run", "--config", conf, "--adapter", "caddyfile"]


PEERS: tuple[Peer, ...] = (
    Peer("nginx", "nginx.conf", _nginx),
    # The wheel's nginx is a small static build (-Os, musl, debug code), which costs it
    # much of its speed. Where the distribution's is installed, it is the one to compare with.
    Peer("nginx-distro", "nginx.conf", _nginx),
    Peer("haproxy", "haproxy.cfg", _haproxy, log_is_output=True),
    Peer("envoy", "envoy.json", _envoy),
    Peer("caddy", "Caddyfile", _caddy),
)
