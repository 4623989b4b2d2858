"""Starting, stopping, reloading, dying: no request is lost, nothing is left, faults are said in a line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend, head_of, in_steps, ok, serve, stall
from tests.support.clients import Client, Load, get, request
from tests.support.processes import Balancer, System, refuses
from tests.support.run import alive, descendants, eventually

KINDS = ["gevent", "gthread"]


def config(*urls: str, **more: Any) -> str:
    """A configuration file with these backends."""
    backends = ", ".join(f'{{url = "{url}"}}' for url in urls)
    lines = [f"backends = [{backends}]", *(f"{key} = {json.dumps(value)}" for key, value in more.items())]
    return "[pools.default]\n" + "\n".join(lines) + "\n"


# Stopping.


@pytest.mark.parametrize("worker", KINDS)
def test_term_lets_what_runs_finish(system: System, worker: str) -> None:
    script = in_steps(head_of(200, "Content-Length: 6") + b"one", b"two")
    with Backend(script) as backend:
        balancer = system.balancer(backends=backend.url, worker=worker)
        with Client(balancer.port) as client:
            client.send(request("GET", "/slow"))
            backend.may_go_on.release()
            assert client.read_head().startswith(b"HTTP/1.1 200 ")
            assert client.read_some() == b"one"
            balancer.send(signal.SIGTERM)
            if worker == "gevent":
                eventually(lambda: refuses(balancer.port), "the listener to be closed")
            else:  # gunicorn's threads keep it open until they have ended, without taking anybody
                eventually(lambda: "signal: term" in balancer.process.err, "the signal to be seen")
            assert balancer.process.process.poll() is None
            backend.may_go_on.release()
            assert client.read_some() == b"two"
            assert balancer.process.wait(10) == 0
            assert client.at_end()
    assert not balancer.worker_pids
    assert balancer.logged("/slow")["bytes"] == 6


def test_it_says_that_it_drains(system: System) -> None:
    """On the control listener, for as long as there is something to finish; each worker does."""
    script = in_steps(ok(b"done"))
    with Backend(script) as backend:
        balancer = system.balancer(backends=backend.url, workers=2)
        with Client(balancer.port) as client:
            client.send(request("GET", "/slow"))
            eventually(lambda: backend.requests, "the request")
            balancer.send(signal.SIGTERM)
            eventually(lambda: refuses(balancer.port), "the data listener to be closed")
            for _ in range(10):
                answer = get(balancer.control, "/readyz")
                assert (answer.status, json.loads(answer.body)) == (503, {"status": "draining"})
            assert get(balancer.control, "/healthz").status == 200
            with Client(balancer.control) as idle:  # holds nothing up
                backend.may_go_on.release()
                assert client.read_answer().body == b"done"
                assert balancer.process.wait(8) == 0
                assert idle.at_end()
    assert refuses(balancer.control)


def test_old_workers_do_not_speak_for_the_new_ones(system: System) -> None:
    """After a reload those that finish what they serve must not make the balancer look unready."""
    with Backend(in_steps(ok(b"done"))) as backend:
        balancer = system.balancer(backends=backend.url)
        (old,) = balancer.worker_pids
        with Client(balancer.port) as client:
            client.send(request("GET", "/slow"))
            eventually(lambda: backend.requests, "the request")
            balancer.send(signal.SIGHUP)
            eventually(lambda: len(balancer.worker_pids) == 2, "the new worker")
            eventually(lambda: balancer.view.workers() == 2, "it to join")
            eventually(lambda: not listens(old), "the old one to stop accepting")
            for _ in range(10):
                assert get(balancer.control, "/readyz").status == 200
            assert alive(old)
            backend.may_go_on.release()
            assert client.read_answer().body == b"done"
        eventually(lambda: not alive(old), "the old worker to end")


def listens(pid: int) -> bool:
    """Has this process a listening TCP socket?"""
    listening = {
        fields[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()
        if (fields := line.split())[3] == "0A"
    }
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink().name.removeprefix("socket:[").rstrip("]") in listening:
                return True
    return False


def test_a_request_on_its_way_in_when_it_stops_is_answered(system: System) -> None:
    """A client whose connection idles may have just sent one; it learns that it was the last."""
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url)
        with Client(balancer.port) as client:
            assert client.get("/1").values("Connection") == []
            balancer.send(signal.SIGTERM)
            eventually(lambda: refuses(balancer.port), "the listener to be closed")
            answer = client.get("/2")
            assert (answer.status, answer.values("Connection")) == (200, ["close"])
            assert client.at_end()
        assert balancer.process.wait(10) == 0


@pytest.mark.parametrize(
    ("worker", "number"),
    [
        ("gevent", signal.SIGTERM),
        ("gevent", signal.SIGINT),
        ("gevent", signal.SIGQUIT),
        ("gthread", signal.SIGTERM),
    ],
)
def test_idle_clients_do_not_hold_it_up(system: System, worker: str, number: signal.Signals) -> None:
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, worker=worker)
        with Client(balancer.port) as used, Client(balancer.port) as fresh:
            assert used.get("/").status == 200
            balancer.send(number)
            assert balancer.process.wait(15 if worker == "gthread" else 8) == 0
            assert used.at_end()
            assert fresh.at_end()


def test_what_never_finishes_is_cut_in_the_end(system: System) -> None:
    with Backend(stall) as backend:
        balancer = system.balancer(backends=backend.url, env={"LB_GRACEFUL_TIMEOUT": "1"})
        with Client(balancer.port) as client:
            client.send(request("GET", "/"))
            eventually(lambda: backend.requests, "the request")
            began = time.monotonic()
            balancer.send(signal.SIGTERM)
            assert balancer.process.wait(10) == 0
            assert 0.9 < time.monotonic() - began < 6
            assert client.at_end()


def test_it_leaves_nothing_in_the_store(system: System) -> None:
    store = system.store()
    with Backend() as backend:
        balancer = system.balancer(store=store.url, backends=backend.url, workers=2)
        assert get(balancer.port).status == 200
        assert balancer.view.workers() == 2
        assert balancer.stop() == 0
        assert balancer.view.workers() == 0
        assert balancer.view.in_flight() == 0


# Reloading.


def test_a_reload_under_load_fails_no_request(system: System) -> None:
    first, second, third = (system.plain_backend() for _ in range(3))
    balancer = system.balancer(config=config(first.url, second.url), workers=2)
    with Load([balancer.port], 16).running() as load:
        for urls, gone in (((second.url, third.url), first), ((first.url, third.url), second)):
            before = set(balancer.worker_pids)
            balancer.config_path.write_text(config(*urls))
            balancer.send(signal.SIGHUP)
            eventually(lambda: not before & set(balancer.worker_pids), "the old workers to go", 20)
            old = gone.counts().get("/", 0)
            done = load.done
            eventually(lambda: load.done > done + 200, "the load to go on")
            assert gone.counts().get("/", 0) == old
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert third.counts()["/"] > 100
    assert sorted(balancer.view.states()) == sorted([first.id, third.id])


@pytest.mark.parametrize("worker", KINDS)
def test_a_bad_configuration_at_a_reload_changes_nothing(system: System, worker: str) -> None:
    with Backend(serve(ok(b"old"))) as old, Backend(serve(ok(b"new"))) as new:
        balancer = system.balancer(config=config(old.url), worker=worker)
        for text, words in (
            (config(new.url, algoritm="x"), "algoritm"),
            ("[pools.default", "is not TOML"),
            (config("ftp://x"), "must start with"),
        ):
            balancer.config_path.write_text(text)
            balancer.send(signal.SIGHUP)
            eventually(lambda words=words: words in balancer.process.err, "the fault to be said")  # type: ignore[misc]
            assert "the running configuration stays in force" in balancer.process.err
            eventually(lambda: get(balancer.port).body == b"old", "an answer")
        balancer.config_path.write_text(config(new.url))
        balancer.send(signal.SIGHUP)
        eventually(lambda: get(balancer.port).body == b"new", "the new configuration")
        assert balancer.process.process.poll() is None


def test_the_file_at_a_reload_leaves_others_backends_alone(system: System) -> None:
    """Those of the command line and the API live beside those of the file."""
    with Backend() as first, Backend() as second, Backend() as added:
        balancer = system.balancer(config=config(first.url))
        command = system.program("lb", "lb.cli", "backends", "add", added.url, env=balancer.env)
        assert command.wait() == 0, command.err
        balancer.config_path.write_text(config(second.url))
        balancer.send(signal.SIGHUP)
        eventually(lambda: sorted(balancer.view.states()) == sorted([second.id, added.id]), "the reload")
        assert [get(balancer.port).status for _ in range(4)] == [200] * 4


def test_logs_are_opened_anew(system: System, tmp_path: Path) -> None:
    """After logrotate has moved them."""
    log = tmp_path / "access.log"
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, env={"LB_ACCESS_LOG": str(log)})
        get(balancer.port, "/1")
        eventually(lambda: "/1" in log.read_text(), "the first entry")
        log.rename(tmp_path / "access.log.1")
        balancer.send(signal.SIGUSR1)
        eventually(log.exists, "the new file")
        get(balancer.port, "/2")
        eventually(lambda: "/2" in log.read_text(), "the second entry")
        assert "/2" not in (tmp_path / "access.log.1").read_text()
        assert balancer.process.out == ""


# Starting, and why not.


def fails(balancer: Balancer, *words: str) -> None:
    """It ends with 1, and one line that has all the words."""
    assert balancer.process.wait(15) == 1
    errors = [line for line in balancer.process.err.splitlines() if "[INFO]" not in line]
    assert len(errors) == 1, balancer.process.err
    assert errors[0].startswith("lb: error: ")
    for word in words:
        assert word in errors[0]
    assert balancer.process.out == ""


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"LB_BACKENDS": "127.0.0.1:9001"}, ["LB_BACKENDS", "must start with http://"]),
        ({"LB_BACKENDS": "http://127.0.0.1:99999"}, ["LB_BACKENDS", "99999"]),
        ({"LB_BACKENDS": "http://user:secret@127.0.0.1:1"}, ["LB_BACKENDS", "password"]),
        ({"LB_ALGORITHM": "fastest"}, ["LB_ALGORITHM", "fastest"]),
        ({"LB_CONFIG": "/no/such/file.toml"}, ["/no/such/file.toml", "no such file"]),
        ({"LB_CONFIG": "/"}, ["/", "cannot be read"]),
        ({"LB_REDIS_URL": "unix:///no/such/socket"}, ["/no/such/socket"]),
        ({"LB_REDIS_URL": "redis://127.0.0.1:1"}, ["127.0.0.1:1"]),
        ({"LB_REDIS_URL": "http://127.0.0.1"}, ["LB_REDIS_URL"]),
        ({"LB_CONTROL_BIND": "0.0.0.0:0"}, ["LB_CONTROL_BIND"]),
        ({"LB_WORKERS": "many"}, ["LB_WORKERS", "many"]),
    ],
)
def test_what_is_wrong_at_the_start_is_said_in_one_line(
    system: System, env: dict[str, str], words: list[str]
) -> None:
    balancer = system.balancer(env=env, wait=False)
    fails(balancer, *words)
    assert "secret" not in balancer.process.err


def test_a_bad_file(system: System) -> None:
    balancer = system.balancer(
        config='[pools.default]\nbackends = [{url = "http://a:1", wait = 3}]\n', wait=False
    )
    fails(balancer, str(balancer.config_path), ":2:", "wait")


@pytest.mark.parametrize("which", ["LB_BIND", "LB_CONTROL_BIND"])
@pytest.mark.parametrize("worker", KINDS)
def test_a_port_in_use(system: System, which: str, worker: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        balancer = system.balancer(env={which: address}, worker=worker, wait=False)
        fails(balancer, address, "in use")
        assert time.monotonic() - began < 8


def test_the_port_of_another_balancer(system: System) -> None:
    with Backend() as backend:
        first = system.balancer(backends=backend.url)
        second = system.balancer(env={"LB_BIND": f"127.0.0.1:{first.port}"}, wait=False)
        fails(second, str(first.port), "in use")
        assert get(first.port).status == 200


# Beside a health daemon.


@pytest.mark.parametrize("first", ["health", "balancer"])
@pytest.mark.parametrize("ended", ["health", "balancer"])
def test_either_starts_and_ends_first(system: System, first: str, ended: str) -> None:
    with Backend() as backend, Backend() as dead:
        dead.stop_listening()
        balancer = system.balancer(backends=f"{backend.url},{dead.url}", wait=False, launch=False)
        if first == "health":
            health = system.health(balancer)
            health.until(lambda: "waiting for the embedded store" in health.err, "it to wait")
        balancer.launch()
        balancer.start()
        if first == "balancer":
            health = system.health(balancer)
        states = {backend.id: "up", dead.id: "down"}
        eventually(lambda: balancer.view.states() == states, "the verdicts")
        assert [get(balancer.port).status for _ in range(4)] == [200] * 4
        assert all("tried" not in entry for entry in balancer.log)
        if ended == "health":
            health.signal(signal.SIGTERM)
            assert health.wait(10) == 0
            assert get(balancer.port).status == 200
            assert balancer.stop() == 0
        else:
            assert balancer.stop() == 0
            assert health.process.poll() is None
            health.signal(signal.SIGTERM)
            assert health.wait(10) == 0
        assert "Traceback" not in health.err


# Dying.


@pytest.mark.parametrize("worker", KINDS)
def test_what_a_killed_worker_held_is_given_back(system: System, worker: str) -> None:
    with Backend(stall) as backend:
        balancer = system.balancer(backends=backend.url, workers=2, worker=worker)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(balancer.port)) for _ in range(8)]
            for client in clients:
                client.send(request("GET", "/"))
            eventually(lambda: balancer.view.in_flight() == 8, "the claims")
            killed = balancer.worker_pids
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            eventually(lambda: balancer.view.in_flight() == 0, "the claims to be given back", 12)
            assert time.monotonic() - began <= 10
        backend.script = serve()
        eventually(lambda: len(balancer.worker_pids) == 2, "new workers")
        assert get(balancer.port).status == 200
        balancer.idle()


def test_a_killed_master_leaves_nothing_behind(system: System) -> None:
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, workers=2)
        assert get(balancer.port).status == 200
        family = descendants(balancer.pid)
        assert len(family) == 3  # two workers and the store
        balancer.send(signal.SIGKILL)
        balancer.ended_badly = True
        eventually(lambda: not any(map(alive, family)), "workers and store to end", 20)
        eventually(lambda: not [p for p in balancer.runtime.rglob("*") if p.is_socket()], "the socket to go")
        balancer.launch()  # and the next one starts as if nothing had been
        balancer.start()
        assert get(balancer.port).status == 200
        assert balancer.stop() == 0


# Odd places.


def test_listening_on_a_unix_socket(system: System, tmp_path: Path) -> None:
    path = tmp_path / "lb.sock"
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, env={"LB_BIND": f"unix:{path}"})
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            sock.sendall(request("GET", "/x"))
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert backend.requests[0].values("X-Forwarded-For") == []
        assert balancer.stop() == 0
        assert not path.exists()


def test_a_log_that_nobody_reads_stops_nobody(system: System) -> None:
    """Standard output is a pipe whose reader sleeps; requests go on, entries are lost."""
    read, write = os.pipe()
    try:
        with Backend() as backend:
            balancer = system.balancer(backends=backend.url, stdout=write)
            load = Load([balancer.port], 4, "/" + "x" * 4000, total=200).run()  # far more than a pipe holds
            assert load.failures == []
            assert load.slowest < 5
            assert get(balancer.port).status == 200
            assert balancer.stop() == 0
    finally:
        os.close(read)
        os.close(write)


def test_whole_lines_from_many_workers(system: System) -> None:
    """Workers share one standard output; no line is torn by another's, and none is lost."""
    read, write = os.pipe()
    got = bytearray()

    def drain() -> None:
        while data := os.read(read, 5000):
            got.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with Backend() as backend:
            balancer = system.balancer(backends=backend.url, workers=2, stdout=write)
            load = Load([balancer.port], 32, lambda turn: f"/{turn}/" + "x" * 300, total=2000).run()
            assert load.failures == []
            assert balancer.stop() == 0
    finally:
        os.close(write)
        reader.join(10)
        os.close(read)
    entries = [json.loads(line) for line in got.splitlines()]
    assert len(entries) == len({entry["target"] for entry in entries}) == 2000
