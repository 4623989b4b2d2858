"""`lb demo` as a process: what it starts, and that nothing is left of it however it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.run import Process, alive, clean_env, descendants, eventually, free_port, python

# One after the other: each looks which of the usual ports are free, then takes them.
pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.timeout(120)]


class Demo:
    """A running `lb demo` and everything that has ever descended from it."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.tmp = folder / "t"
        self.tmp.mkdir()
        environment = clean_env({"TMPDIR": str(self.tmp)} | (env or {}))
        self.process: Process = python(folder, "demo", "-m", "lb.cli", "demo", *arguments, env=environment)
        self.seen: set[int] = set()

    def watch(self) -> set[int]:
        """Its descendants now, which are remembered."""
        found = descendants(self.process.pid)
        self.seen |= found
        return found

    def until_ready(self) -> None:
        """Wait until it says what to try."""
        self.process.until(lambda: (self.watch(), "Ctrl-C ends" in self.process.out)[1], "the demo")

    def address(self, what: str) -> str:
        """`host:port` of one of its parts, as printed."""
        found = re.search(rf"^  {what} +http://(\S+)", self.process.out, re.MULTILINE)
        assert found, self.process.out
        return found[1]

    def get(self, path: str = "/") -> dict[str, str]:
        """One answer through the balancer."""
        connection = http.client.HTTPConnection(self.address("balancer"), timeout=20)
        connection.request("GET", path)
        answer: dict[str, str] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def pid_of(self, *words: str) -> int:
        """The descendant whose command line has these words, the oldest if there are several."""
        for pid in sorted(self.watch()):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if all(word in line for word in words):
                return pid
        raise AssertionError(f"no process with {words}")

    def assert_nothing_left(self) -> None:
        """No process, and no file, when the demo itself has ended."""
        assert self.process.process.poll() is not None
        left = [pid for pid in self.seen if alive(pid)]
        assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
        assert list(self.tmp.iterdir()) == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, for the sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="lb-t-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    """A demo that is ready, on a port of its own; ended if the test has not."""
    with free_port() as port:
        found = Demo(folder, "--port", str(port))
        try:
            found.until_ready()
            yield found
        finally:
            found.process.end()


def test_it_balances_and_says_how_to_look(demo: Demo) -> None:
    assert {demo.get()["backend"] for _ in range(3)} == {"b1", "b2", "b3"}
    [line] = [line for line in demo.process.out.splitlines() if line.endswith(" status")]
    told = subprocess.run([*shlex.split(line), "--json"], capture_output=True, env=clean_env(), check=True)
    backends = json.loads(told.stdout)["pools"]["default"]["backends"]
    assert [backend["state"] for backend in backends] == ["up"] * 3
    urls = {"http://" + demo.address(f"backend {name}") for name in ("b1", "b2", "b3")}
    assert {backend["url"] for backend in backends} == urls
    demo.watch()
    demo.process.signal(signal.SIGINT)
    assert demo.process.wait() == 0
    assert demo.process.out.endswith("ended\n")
    assert demo.process.err == "starting …\n" or "is in use" in demo.process.err
    demo.assert_nothing_left()


def test_term_ends_it_while_it_serves(demo: Demo) -> None:
    connection = http.client.HTTPConnection(demo.address("balancer"), timeout=20)
    connection.request("GET", "/slow?seconds=1")
    demo.watch()
    demo.process.signal(signal.SIGTERM)
    assert demo.process.wait() == 0
    connection.close()
    demo.assert_nothing_left()


@pytest.mark.parametrize(
    ("processes", "number"),
    [(n, signal.SIGINT) for n in (0, 1, 3, 4, 6)] + [(1, signal.SIGTERM), (4, signal.SIGHUP)],
)
def test_it_ends_at_any_moment_of_its_start(folder: Path, processes: int, number: signal.Signals) -> None:
    demo = Demo(folder)
    demo.process.until(
        lambda: len(demo.watch()) >= processes and "starting" in demo.process.err, f"{processes} processes"
    )
    demo.process.signal(number)
    assert demo.process.wait() == 0
    demo.assert_nothing_left()


@pytest.mark.parametrize(
    ("name", "words"),
    [("b2", ["lb.demo", "b2"]), ("lb-health", ["lb.health.cli"]), ("balancer", ["lb.app"])],
)
def test_a_part_that_dies_ends_the_rest(demo: Demo, name: str, words: list[str]) -> None:
    os.kill(demo.pid_of(*words), signal.SIGKILL)
    assert demo.process.wait() == 1
    assert f"lb: demo: {name} was ended by signal 9" in demo.process.err
    demo.assert_nothing_left()


def test_kill_9_leaves_no_process(demo: Demo) -> None:
    assert len(demo.watch()) >= 6
    demo.process.signal(signal.SIGKILL)
    demo.process.wait()
    eventually(lambda: not any(alive(pid) for pid in demo.seen), "the end of all its processes")


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = Demo(folder, "--port", str(port))
        assert demo.process.wait() == 1
    assert demo.process.err == f"lb: demo: port {port} is in use; choose another one, or leave --port out\n"
    demo.assert_nothing_left()


def test_usual_ports_that_are_taken_and_settings_of_others(folder: Path) -> None:
    (folder / "lb.toml").write_text("nonsense = 1\n")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        demo = Demo(folder, env={"LB_BACKENDS": "http://127.0.0.1:1", "LB_WORKERS": "x"})
        try:
            demo.until_ready()
            port = demo.address("balancer").rpartition(":")[2]
            assert port != "8000"
            assert f"port 8000 is in use: the balancer takes {port}\n" in demo.process.err
            assert demo.get()["backend"] in ("b1", "b2", "b3")
        finally:
            assert demo.process.end() == 0
    demo.assert_nothing_left()
