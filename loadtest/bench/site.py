"""What all proxies of one bench share: the two backends, the cores, and the check of their work."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from loadtest.bench.binaries import Programs
from loadtest.bench.wrk import MIB
from loadtest.procs import Child, Children, NotReadyError, answers, free_ports

TEMPLATES = Path(__file__).parent / "templates"


class WrongAnswerError(RuntimeError):
    """A proxy does not do the work that is to be measured."""


@dataclass(frozen=True)
class Site:
    """One bench: its children (and their folder), the backends' ports, the proxies' core and the other."""

    children: Children
    programs: Programs
    backends: tuple[int, int]
    proxy_core: int
    load_core: int

    @property
    def folder(self) -> Path:
        """Where everything that this bench writes is; removed with it."""
        return self.children.folder


@dataclass(frozen=True)
class Running:
    """A started proxy. `pids` are the processes that do its work, all on the proxies' core."""

    name: str
    version: str
    port: int
    child: Child
    log: Path
    pids: tuple[int, ...]

    def cpu_seconds(self) -> float:
        """Processor time its working processes have used so far, in seconds.

        Raises `NotReadyError` when one of them has ended.
        """
        used = 0.0
        for pid in self.pids:
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                raise NotReadyError(f"{self.name}: process {pid} ended\n{self.child.tail()}") from None
            used += times.user + times.system
        return used

    def empty_log(self) -> None:
        """Free the log's space. Who appends goes on at its start, who does not leaves a hole there."""
        if self.log.exists():
            with self.log.open("r+b") as file:
                file.truncate(0)


class Proxy(Protocol):
    """Something the bench can measure."""

    @property
    def name(self) -> str:
        """Its name on the command line and in the tables."""
        ...

    def missing(self, programs: Programs) -> str | None:
        """Why it can't run here, in one line; None when it can."""
        ...

    def start(self, site: Site) -> Running:
        """Start it and return once it answers."""
        ...


def render(template: str, target: Path, **values: object) -> Path:
    """Write `templates/<template>` to `target` with every `@NAME@` replaced."""
    text = (TEMPLATES / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name.upper()}@", str(value))
    target.write_text(text)
    return target


def start_backends(children: Children, programs: Programs, core: int) -> tuple[int, int]:
    """Start the two backends (nginx) on `core` and return their ports.

    They answer `/` with a short text, `/1m` with 1 MiB, and `/upload` once they have read
    the whole body. Raises `FileNotFoundError` when there is no nginx.
    """
    # The faster build, if there are two: the less the backends cost, the less they limit a proxy.
    program = programs.find("nginx-distro") or programs.require("nginx")
    first, second = free_ports(2)
    folder = children.folder
    (folder / "1m").write_bytes(b"x" * MIB)
    conf = render("backends.conf", folder / "backends.conf", dir=folder, port1=first, port2=second)
    child = children.start("backends", [program, "-p", folder, "-c", conf], core=core)
    child.require(lambda: answers(first) and answers(second), "an answer from both backends")
    return first, second


def verify(running: Running, site: Site) -> None:
    """Check that a proxy balances and carries whole bodies. Raises `WrongAnswerError`."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)

    def exchange(method: str, path: str, body: bytes | None = None) -> bytes:
        connection.request(method, path, body)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise WrongAnswerError(f"{running.name}: {method} {path} was answered with {answer.status}")
        return content

    try:
        seen = [exchange("GET", "/") for _ in range(8)]
        for port in site.backends:
            share = sum(text == f"hello from {port}\n".encode() for text in seen)
            if share != len(seen) // 2:
                raise WrongAnswerError(f"{running.name}: no round robin, answers were {seen}")
        if (length := len(exchange("GET", "/1m"))) != MIB:
            raise WrongAnswerError(f"{running.name}: a response of 1 MiB came as {length} bytes")
        if (told := exchange("POST", "/upload", b"x" * MIB)) != f"got {MIB}\n".encode():
            raise WrongAnswerError(f"{running.name}: an upload of 1 MiB was answered with {told!r}")
    except (OSError, http.client.HTTPException) as error:
        raise WrongAnswerError(f"{running.name}: {error!r}") from error
    finally:
        connection.close()
