"""`lb demo`: a whole system on this machine, to try; it leaves nothing behind.

All signals are blocked and fetched where the program waits, so that a Ctrl-C at any moment finds it between
two steps. Whatever happens, the last step ends every process that descends from this one and removes
the folder with the sockets, logs and settings.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from lb.cli.healthcheck import NotReady, ask
from lb.cli.serve import GUNICORN
from lb.errors import LbError
from lb.process import adopt_orphans, child_setup, children

BACKENDS = ("b1", "b2", "b3")
WORKERS = 2
HOST = "127.0.0.1"
DATA_PORT, CONTROL_PORT = 8000, 8001
PORT_TRIES = 5
READY_SECONDS = 60.0
"""How long everything together may take until the first answer; a busy machine needs some of it."""
STOP_SECONDS = 10.0
"""How long a process may take to end before it is killed."""
LOOK_SECONDS = 0.05
"""Between two looks at a condition; a signal is seen at once."""
ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
WAKING = ENDING | {signal.SIGCHLD}


class DemoFailed(LbError):
    """A part of the demo did not start, or ended by itself."""


class Asked(Exception):
    """Somebody asked the demo to end."""


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Where the balancer answers. [default: 8000, or a free one]"
)
def demo(port: int | None) -> None:
    """Start three backends, the health daemon and a balancer with two workers; Ctrl-C ends them all.

    Everything it needs is in a private temporary folder; variables and lb.toml are not read.
    """
    with _signals_fetched() as mask, _folder() as folder:
        crew = Crew(folder, mask)
        try:
            _start(crew, port)
            crew.wait(lambda: False, None)
        except Asked:
            pass
        finally:
            crew.end()
    click.echo("ended")


class Crew:
    """The processes of the demo: started, watched, and ended together."""

    def __init__(self, folder: Path, mask: set[signal.Signals]) -> None:
        self.folder = folder
        #: What they inherit: nothing that would configure them otherwise.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("LB_")}
        self._setup = child_setup(mask)
        self._members: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start Python with `arguments`; what it prints goes to `NAME.log` in the folder.

        One of that name that was there before has ended, and is replaced.
        """
        with self.log(name).open("wb") as log:
            self._members[name] = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,  # a Ctrl-C is for the demo, which ends them in order
                preexec_fn=self._setup,
            )

    def has(self, name: str) -> bool:
        """Has that member been started?"""
        return name in self._members

    def log(self, name: str) -> Path:
        """Where the output of a member is."""
        return self.folder / f"{name}.log"

    def wait(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until `condition` holds; False when it did not within `seconds` (None: for ever).

        Raises Asked on a signal to end, DemoFailed when one of the processes has ended.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self.check()
            if condition():
                return True
            if deadline is not None and time.monotonic() > deadline:
                return False
            pause = 1.0 if deadline is None else LOOK_SECONDS
            caught = signal.sigtimedwait(WAKING, pause)
            if caught is not None and caught.si_signo in ENDING:
                raise Asked

    def check(self) -> None:
        """Raise DemoFailed if one of the processes has ended."""
        for name, process in self._members.items():
            status = process.poll()
            if status is not None:
                how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
                raise DemoFailed(f"demo: {name} {how}{_tail(self.log(name))}")

    def end(self) -> None:
        """End all of them, in the reverse order of their start, and whatever they have started."""
        for process in reversed(self._members.values()):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # Orphans of theirs are our children by now: see `adopt_orphans`.
        deadline = time.monotonic() + STOP_SECONDS
        while left := children():
            late = time.monotonic() > deadline
            for pid in left:
                _end_child(pid, signal.SIGKILL if late else signal.SIGTERM)
            signal.sigtimedwait({signal.SIGCHLD}, LOOK_SECONDS)


def _end_child(pid: int, number: signal.Signals) -> None:
    """Collect a child that has ended, else send it a signal."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, number)
    except (ChildProcessError, ProcessLookupError):
        return


@contextmanager
def _signals_fetched() -> Iterator[set[signal.Signals]]:
    """Block the signals that the demo waits for; give the mask that was in force."""
    adopt_orphans()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAKING)
    try:
        yield {signal.Signals(number) for number in before}
    finally:
        while signal.sigtimedwait(WAKING, 0) is not None:
            pass  # a second Ctrl-C while it was ending
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _folder() -> Iterator[Path]:
    """A private folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="lb-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _start(crew: Crew, wanted: int | None) -> None:
    """Start everything, and say where it is once it answers."""
    deadline = time.monotonic() + READY_SECONDS
    data, control = _ports(wanted)
    click.echo("starting …", err=True)
    for name in BACKENDS:
        crew.start(name, "-m", "lb.demo", "--port", "0", "--name", name)
    urls = [_url(crew, name) for name in BACKENDS]
    config = crew.folder / "lb.toml"
    crew.env["LB_CONFIG"] = str(config)
    for left in reversed(range(PORT_TRIES)):
        config.write_text(_config(crew.folder, data, control, urls))
        crew.start("balancer", *GUNICORN)
        if not crew.has("lb-health"):
            crew.start("lb-health", "-m", "lb.health.cli", "--interval", "2")
        try:
            ready = crew.wait(lambda: _answers(data, control), deadline - time.monotonic())  # noqa: B023 - at once
        except DemoFailed:
            # Somebody may have taken a port since we looked; then look again.
            if not left or " is in use" not in crew.log("balancer").read_text(errors="replace"):
                raise
            data, control = _ports(wanted)
        else:
            break
    if not ready:
        raise DemoFailed(f"demo: no answer within {READY_SECONDS:g} s{_tail(crew.log('balancer'))}")
    click.echo(_words(data, control, urls, config, crew.folder / "access.log"))


def _ports(wanted: int | None) -> tuple[int, int]:
    """The ports of the data and the control side. Raises DemoFailed if the one asked for is taken."""
    if wanted is not None and not _is_free(wanted):
        raise DemoFailed(f"demo: port {wanted} is in use; choose another one, or leave --port out")
    data = wanted or _port(DATA_PORT, "the balancer", CONTROL_PORT)
    return data, _port(CONTROL_PORT, "the control side", data)


def _port(usual: int, what: str, other: int) -> int:
    """The usual port, or if it is taken a free one, which is told. Never `other`."""
    if usual != other and _is_free(usual):
        return usual
    while True:
        with socket.socket() as sock:
            sock.bind((HOST, 0))
            port = int(sock.getsockname()[1])
        if port != other:
            click.echo(f"port {usual} is in use: {what} takes {port}", err=True)
            return port


def _is_free(port: int) -> bool:
    """Could a server listen there now? (As gunicorn does it, connections that linger do not count.)"""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(1)
        except OSError:
            return False
        return True


def _url(crew: Crew, name: str) -> str:
    """The URL that a backend prints once it listens."""
    log = crew.log(name)
    if not crew.wait(lambda: log.read_bytes().endswith(b"\n"), READY_SECONDS):
        raise DemoFailed(f"demo: {name} does not start{_tail(log)}")
    return log.read_text().partition(": ")[2].strip()


def _config(folder: Path, data: int, control: int, urls: list[str]) -> str:
    backends = "".join(f'    {{ url = "{url}" }},\n' for url in urls)
    return (
        f'bind = "{HOST}:{data}"\ncontrol_bind = "{HOST}:{control}"\nworkers = {WORKERS}\n'
        f'runtime_dir = "{folder}"\nlog.access = "{folder}/access.log"\n\n'
        f"[pools.default]\nbackends = [\n{backends}]\n"
    )


def _answers(data: int, control: int) -> bool:
    """Is the balancer ready, and does a request get through to a backend?"""
    try:
        if ask(f"{HOST}:{control}", "/readyz", 1.0)[0] != 200:
            return False
        connection = http.client.HTTPConnection(HOST, data, timeout=1.0)
        try:
            connection.request("GET", "/__stats")  # which the backends do not count
            return connection.getresponse().status == 200
        finally:
            connection.close()
    except (NotReady, OSError, http.client.HTTPException):
        return False


def _words(data: int, control: int, urls: list[str], config: Path, log: Path) -> str:
    lines = [
        "",
        f"  balancer     http://{HOST}:{data}  ({WORKERS} workers)",
        f"  control      http://{HOST}:{control}",
        *(f"  backend {name}   {url}" for name, url in zip(BACKENDS, urls, strict=True)),
        f"  access log   {log}",
        "",
        "Try, in another terminal:",
        "",
        f"  curl http://{HOST}:{data}/",
        f"  {_command()} --config {config} status",
        "",
        "Ctrl-C ends it all.",
    ]
    return "\n".join(lines)


def _command() -> str:
    """How this program was called, to be typed again."""
    called = sys.argv[0]
    if Path(called).name != "lb":
        return f"{sys.executable} -m lb.cli"
    found = shutil.which("lb")
    return "lb" if found and Path(found).resolve() == Path(called).resolve() else called


def _tail(log: Path) -> str:
    """The last lines of a log, for an error message."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-10:]
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines)
