"""The image, built for real, and its processes.

Takes minutes, some GiB of disk, root, and Debian's packages buildah and debootstrap, so nobody runs it by
chance, and CI not at all:

    pytest -m image tests/deploy/test_image.py

With LB_TEST_IMAGE_WORK=FOLDER all of it is kept there, and the base image is used again.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.image import Image, index_hosts, inner
from tests.support.need import need_binary
from tests.support.run import Process, alive, clean_env, descendants, eventually, free_port

pytestmark = [
    pytest.mark.image,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("image"),
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    assert os.geteuid() == 0, "only root can make a base image"
    for program in ("buildah", "debootstrap"):
        need_binary(program, program)
    given = os.environ.get("LB_TEST_IMAGE_WORK")
    work = Path(given).absolute() if given else tmp_path_factory.mktemp("image")
    work.mkdir(parents=True, exist_ok=True)
    made = Image(work)
    yield made
    made.close()
    if not given:
        # Files of other users, and what containers left: more than pytest's own cleaning can do.
        subprocess.run(("rm", "-rf", "--one-file-system", str(work)), check=False)


@pytest.fixture
def start(image: Image, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts processes that are ended with the test. `how` is a method of Image."""
    running: list[Process] = []

    def begin(how: Callable[..., Process], name: str, *command: str, **env: str) -> Process:
        running.append(how(tmp_path, name, *command, **env))
        return running[-1]

    yield begin
    for process in running:
        for pid in descendants(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.end()


@pytest.fixture
def ports() -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(free_port()) for _ in range(4)]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def answers(url: str) -> bool:
    try:
        return bool(get(url))
    except OSError:
        return False


def stop(process: Process) -> int:
    """TERM to the process inside; the exit status that comes out."""
    os.kill(inner(process), signal.SIGTERM)
    return process.wait(60)


def test_says_how_it_is_run(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["lb-entrypoint"]
    assert config["Cmd"] == ["serve"]
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "lb-entrypoint", "healthcheck"]
    assert config["WorkingDir"] == "/etc/lb"
    assert config["Labels"]["org.opencontainers.image.title"] == "lb"


def test_holds_nothing_of_the_build(image: Image) -> None:
    for path in ("src", "wheels", "root/.cache", "opt/lb/bin/pip", "usr/bin/gcc"):
        assert not (image.files / path).exists(), path
    pip_conf = image.files / "etc/pip.conf"
    assert not pip_conf.exists() or pip_conf.stat().st_size == 0  # what it was mounted on
    for host in index_hosts():
        found = subprocess.run(
            ("grep", "-rIlF", "--exclude-dir=proc", host, str(image.files / "opt"), str(image.files / "etc")),
            capture_output=True,
            text=True,
        )
        assert not found.stdout, f"{host} is named in {found.stdout}"


def test_an_unknown_word_is_said_to_be_one(image: Image, start: Callable[..., Process]) -> None:
    process = start(image.run, "unknown", "lb-entrypoint", "dispatsch")
    assert process.wait() == 2
    assert "No such command 'dispatsch'" in process.err


def test_a_system_of_its_processes(image: Image, start: Callable[..., Process], ports: list[int]) -> None:
    one, two, bind, control = ports
    where = {
        "LB_BIND": f"127.0.0.1:{bind}",
        "LB_CONTROL_BIND": f"127.0.0.1:{control}",
        "LB_BACKENDS": f"http://127.0.0.1:{one},http://127.0.0.1:{two}",
        "LB_WORKERS": "2",
    }
    backends = [
        start(image.run, name, "python", "-m", "lb.demo", "--port", str(port), "--name", name)
        for name, port in {"one": one, "two": two}.items()
    ]
    health = start(image.run, "health", "lb-entrypoint", "health", "--interval", "1")
    balancer = start(image.run, "balancer", "lb-entrypoint", **where)

    url = f"http://127.0.0.1:{bind}/"
    balancer.until(lambda: answers(url), "an answer")
    health.until(lambda: "-> up" in health.err, "a verdict of the health daemon")
    before = Counter(json.loads(get(url))["backend"] for _ in range(20))
    assert before == {"one": 10, "two": 10}

    asked = start(image.run, "check", "lb-entrypoint", "healthcheck", **where)
    assert asked.wait() == 0, asked.err
    status = start(image.run, "status", "lb-entrypoint", "status", "--json", **where)
    assert status.wait() == 0, status.err
    shown = json.loads(status.out)["pools"]["default"]["backends"]
    assert [backend["state"] for backend in shown] == ["up", "up"]

    lines = [json.loads(line) for line in balancer.out.splitlines()]
    assert {line["status"] for line in lines if line["pool"]} <= {200, 503}

    assert stop(backends[0]) == 0
    health.until(lambda: "-> down" in health.err, "the verdict that one is down")
    assert {json.loads(get(url))["backend"] for _ in range(10)} == {"two"}

    assert stop(health) == 0
    assert stop(balancer) == 0, balancer.err
    assert stop(backends[1]) == 0


def test_as_a_container(image: Image, start: Callable[..., Process], ports: list[int]) -> None:
    one, _, bind, control = ports
    where = {
        "LB_BIND": f"127.0.0.1:{bind}",
        "LB_CONTROL_BIND": f"127.0.0.1:{control}",
        "LB_BACKENDS": f"http://127.0.0.1:{one}",
        "LB_WORKERS": "1",
    }
    start(image.run, "one", "python", "-m", "lb.demo", "--port", str(one), "--name", "one")
    balancer = start(image.contain, "balancer", **where)
    url = f"http://127.0.0.1:{bind}"
    balancer.until(lambda: answers(url), "an answer")

    master = inner(balancer)
    status = Path(f"/proc/{master}/status").read_text()
    assert "\nNSpid:\t" + f"{master}\t1\n" in status, "it is not PID 1"
    assert "\nUid:\t10001\t" in status
    written = image.enter(master, "touch", "/etc/lb/x")
    assert "Read-only" in written.stderr
    assert image.enter(master, *image.config["Healthcheck"]["Test"][1:], **where).returncode == 0

    # An orphan of this container becomes a child of its PID 1, which must collect it.
    image.enter(master, "sh", "-c", "sleep 1 >/dev/null 2>&1 &")
    eventually(lambda: "sleep" in names(master), "the orphan")
    eventually(lambda: "sleep" not in names(master), "its end")
    assert all(alive(pid) for pid in descendants(master))

    got: list[str] = []
    served = requests_of(one)
    asking = threading.Thread(target=lambda: got.append(get(f"{url}/slow?seconds=3")))
    asking.start()
    eventually(lambda: requests_of(one) > served, "the slow request to have reached the backend")
    assert stop(balancer) == 0, balancer.err
    asking.join()
    assert json.loads(got[0])["path"] == "/slow"


def test_as_containers_around_a_redis(
    image: Image, start: Callable[..., Process], ports: list[int], tmp_path: Path
) -> None:
    """The processes of deploy/compose.yaml: none of them has a place to write to."""
    one, store, bind, control = ports
    server = need_binary("redis-server", "redis-server")
    words = (server, "--port", str(store), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path))
    redis = Process(tmp_path, "redis", *words, env=clean_env(), cwd=tmp_path)
    try:
        redis.until(lambda: "Ready to accept connections" in redis.out, "Redis")
        where = {
            "LB_BIND": f"127.0.0.1:{bind}",
            "LB_CONTROL_BIND": f"127.0.0.1:{control}",
            "LB_REDIS_URL": f"redis://127.0.0.1:{store}/0",
            "LB_BACKENDS": f"http://127.0.0.1:{one}",
            "LB_WORKERS": "1",
        }
        start(image.run, "one", "python", "-m", "lb.demo", "--port", str(one), "--name", "one")
        health = start(image.contain, "health", "health", "--interval", "2", **where)
        balancer = start(image.contain, "balancer", **where)
        balancer.until(lambda: answers(f"http://127.0.0.1:{bind}/"), "an answer")
        health.until(lambda: "-> up" in health.err, "a verdict of the health daemon")
        master = inner(balancer)
        assert image.enter(master, "touch", "/run/lb/x").returncode != 0
        assert '"up"' in image.enter(master, "lb", "status", "--json", **where).stdout
        assert stop(health) == 0
        assert stop(balancer) == 0, balancer.err
    finally:
        redis.end()


def test_health_check_of_a_container_that_is_no_balancer(image: Image, start: Callable[..., Process]) -> None:
    daemon = start(image.contain, "health", "health", "--interval", "1")
    daemon.until(lambda: "waiting for the embedded store" in daemon.err, "its first line")
    assert image.enter(inner(daemon), *image.config["Healthcheck"]["Test"][1:]).returncode == 0
    assert stop(daemon) == 0


def requests_of(port: int) -> int:
    """How many requests the demo backend on that port has had."""
    return int(json.loads(get(f"http://127.0.0.1:{port}/__stats"))["requests"])


def names(pid: int) -> set[str]:
    """What the children of a process are called."""
    found = set()
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{child}/comm").read_text().strip())
    return found
