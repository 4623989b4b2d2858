"""Starting up: settings for gunicorn, and what the master checks and publishes before it forks."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from lb import boot
from lb.config import load
from lb.errors import ConfigError
from lb.state.embedded import EmbeddedStore
from lb.state.registry import Registry
from lb.state.spawn import running
from lb.state.store import connect
from tests.support.certificates import Pair
from tests.support.run import clean_env, eventually

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short name, for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="lb-t-"))
    yield path
    boot.stop_master()  # before its store's folder goes
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a process that has just begun; whatever it changes is undone."""
    monkeypatch.setattr(boot, "_settings", None)
    monkeypatch.setattr(boot, "_store", None)
    monkeypatch.setattr(boot, "_mend_at", 0.0)
    monkeypatch.setattr(boot, "_mend_pause", boot.MEND_PAUSES[0])
    monkeypatch.setattr(boot, "_tls", None)
    monkeypatch.setattr(boot, "_flagged", None)
    monkeypatch.chdir(tmp_path)
    for name in [
        name for name in os.environ if name.startswith("LB_") or name in ("GUNICORN_FD", "LISTEN_FDS")
    ]:
        monkeypatch.delenv(name)
    log = logging.getLogger("lb")
    before = (log.handlers, log.level, log.propagate)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    boot.stop_master()
    log.handlers, log.propagate = before[0], before[2]
    log.setLevel(before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, files)


def a_cfg(*addresses: tuple[str, int], **flags: object) -> Any:
    """gunicorn's settings, with these addresses."""
    cfg = Config()
    for name, value in boot.gunicorn_settings(os.environ).items():
        cfg.set(name, value)
    cfg.set("bind", [f"{host}:{port}" for host, port in addresses])
    for name, value in flags.items():
        cfg.set(name, value)
    return cfg


def a_log() -> logging.Logger:
    """gunicorn's error log, as it were: a logger of its own."""
    log = logging.getLogger("gunicorn.error.of.a.test")
    log.setLevel(logging.INFO)
    log.handlers = [logging.NullHandler()]
    return log


# The settings.


def test_what_gunicorn_is_told() -> None:
    env = {
        "LB_BIND": "127.0.0.1:1",
        "LB_CONTROL_BIND": "127.0.0.1:2",
        "LB_WORKERS": "3",
        "LB_BACKENDS": "http://a:1",
        "LB_GRACEFUL_TIMEOUT": "2.5",
        "LB_LOG_LEVEL": "debug",
    }
    found = boot.gunicorn_settings(env)
    assert found["bind"] == ["127.0.0.1:1", "127.0.0.1:2"]
    assert found["workers"] == 3
    assert found["graceful_timeout"] == 3
    assert found["loglevel"] == "debug"
    assert found["worker_class"] == "lb.worker.Worker"
    assert found["forwarded_allow_ips"] == ""
    assert boot.settings().workers == 3


def test_a_worker_for_each_core_this_process_may_use() -> None:
    found = boot.gunicorn_settings({"LB_BACKENDS": "http://a:1"})
    assert found["workers"] == len(os.sched_getaffinity(0))


def test_gunicorn_knows_all_of_them() -> None:
    from gunicorn.config import KNOWN_SETTINGS

    known = {setting.name for setting in KNOWN_SETTINGS}
    assert set(boot.gunicorn_settings({"LB_BACKENDS": "http://a:1"})) <= known


def test_a_bad_configuration_ends_the_start_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        boot.gunicorn_settings({"LB_WORKERS": "many"})
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("lb: error: ")
    assert told.err.count("\n") == 1
    assert "LB_WORKERS" in told.err


def test_a_bad_reload_keeps_what_is_in_force(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    env = {"LB_CONFIG": str(file)}
    file.write_text('workers = 5\n[pools.web]\nbackends = [{ url = "http://a:1" }]\n')
    first = boot.gunicorn_settings(env)
    file.write_text("workers = 6\nnonsense = 1\n")
    assert boot.gunicorn_settings(env) == first
    assert boot.settings().workers == 5
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "nonsense" in record.getMessage()
    assert "stays in force" in record.getMessage()
    file.write_text('workers = 6\n[pools.web]\nbackends = [{ url = "http://a:1" }]\n')
    assert boot.gunicorn_settings(env)["workers"] == 6


# Addresses.


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1:{}"), ("::1", "[::1]:{}")])
def test_an_address_in_use_is_named(host: str, shown: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.socket(family)
        taken.bind((host, 0))
    except OSError:
        pytest.skip(f"there is no {host} on this machine")
    with taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="in use by another process") as found:
            boot._check_free((host, port))
        assert shown.format(port) in str(found.value)
    boot._check_free((host, port))


def test_other_addresses() -> None:
    boot._check_free("unix:/nowhere/at/all")
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:80: "):
        boot._check_free(("192.0.2.1", 80))


def test_a_port_that_just_closed_is_free() -> None:
    """Connections that linger in TIME_WAIT are no reason to refuse."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client, listener.accept()[0] as accepted:
            accepted.close()
            assert client.recv(1) == b""
    boot._check_free(address)


# What the master does.


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, backends: str = "http://a:1") -> None:
    """The configuration that the environment has."""
    monkeypatch.setenv("LB_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("LB_BACKENDS", backends)
    boot.gunicorn_settings(os.environ)


def published(folder: Path) -> set[str]:
    """The backends in the embedded store."""
    with connect(EmbeddedStore(folder).url) as client:
        return set(Registry(client).load("default").backends)


def test_the_master_starts_the_store_and_publishes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(folder, monkeypatch)
    boot.start_master(a_cfg(), a_log())
    pid = EmbeddedStore(folder).pid()
    assert pid is not None
    assert published(folder) == {"a:1"}
    use(folder, monkeypatch, "http://b:2")
    assert published(folder) == {"a:1"}
    boot.reload_master(a_cfg())
    assert published(folder) == {"b:2"}
    boot.leave_if_orphaned(os.getppid())  # its master lives
    assert running(pid)
    boot.stop_master()
    boot.stop_master()
    assert EmbeddedStore(folder).pid() is None


def test_a_store_that_has_died_is_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    boot.mend_store()  # there is none
    use(folder, monkeypatch)
    boot.start_master(a_cfg(), a_log())
    logging.getLogger("lb").propagate = True
    pid = EmbeddedStore(folder).pid()
    assert pid is not None
    boot.mend_store()
    assert EmbeddedStore(folder).pid() == pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not running(pid), "it to be dead")
    with monkeypatch.context() as patch:
        patch.setattr("lb.state.embedded.server_binary", lambda: "/bin/false")
        boot.mend_store()
        boot.mend_store()  # not again at once
    assert [record.getMessage().split(":")[0] for record in caplog.records if record.name == "lb"] == [
        "the embedded store has died and cannot be started again"
    ]
    boot.mend_store()
    assert EmbeddedStore(folder).pid() is None
    monkeypatch.setattr(boot, "_mend_at", 0.0)  # the pause is over
    boot.mend_store()
    assert published(folder) == {"a:1"}
    assert (
        caplog.records[-1].getMessage() == "the embedded store had died; it was started again, with its data"
    )


def test_an_address_in_use_starts_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(folder, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(SystemExit) as ended:
            boot.start_master(a_cfg(("127.0.0.1", 0), taken.getsockname()), a_log())
        assert ended.value.code == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert str(taken.getsockname()[1]) in told
        assert EmbeddedStore(folder).pid() is None
        # A master that was handed its sockets by another one finds them in use: by itself.
        monkeypatch.setenv("GUNICORN_FD", "3")
        boot.start_master(a_cfg(taken.getsockname()), a_log())


def test_a_store_that_is_not_there_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LB_REDIS_URL", f"unix://{tmp_path}/nothing-here")
    use(tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        boot.start_master(a_cfg(), a_log())
    assert ended.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reload_survives_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LB_REDIS_URL", f"unix://{tmp_path}/nothing-here")
    use(tmp_path, monkeypatch)
    boot.reload_master(a_cfg())
    assert "could not be published" in caplog.records[-1].getMessage()


def test_flags_of_gunicorn_win_over_the_settings(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_pair: Pair
) -> None:
    use(folder, monkeypatch)
    boot.take_flags(a_cfg())
    assert boot.tls() is None
    boot.take_flags(a_cfg(certfile=str(server_pair.certificate), keyfile=str(server_pair.key)))
    flagged = boot.tls()
    assert flagged is not None
    with pytest.raises(ConfigError, match=r"gunicorn\.certificate: .*nothing cannot be read"):
        boot.take_flags(a_cfg(certfile=str(tmp_path / "nothing"), keyfile=str(server_pair.key)))
    assert boot.tls() is flagged
    for name, value in server_pair.env().items():
        monkeypatch.setenv(name, value)
    boot.take_flags(a_cfg())
    assert boot.tls() not in (None, flagged)


def test_a_certificate_that_cannot_be_loaded_ends_the_start_but_no_reload(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server_pair: Pair,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = server_pair.env()
    broken = env | {"LB_TLS_KEY": str(tmp_path / "nothing")}
    with pytest.raises(SystemExit) as ended:
        boot.gunicorn_settings(broken)
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "tls.key" in told
    assert boot.gunicorn_settings(env)["certfile"] == str(server_pair.certificate)
    context = boot.tls()
    assert boot.gunicorn_settings(broken)["keyfile"] == str(server_pair.key)
    assert boot.tls() is context
    assert "the running configuration stays in force" in caplog.text


def test_the_log_goes_where_gunicorns_goes() -> None:
    log = a_log()
    log.setLevel(logging.WARNING)
    boot.use_log(log)
    ours = logging.getLogger("lb")
    assert ours.handlers is log.handlers
    assert ours.level == logging.WARNING
    assert not ours.propagate


def test_as_many_files_as_there_may_be() -> None:
    """In a process of its own, which may lower its limits for good."""
    code = (
        "import resource; from lb import boot; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200)); boot._raise_file_limit(); "
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=clean_env()
    )
    assert (done.stdout, done.stderr) == ("(200, 200)\n", "")


# What a worker is made of.


def test_the_parts_of_a_worker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lb.state.threads import ThreadRuntime

    monkeypatch.setenv("LB_LOG_LEVEL", "error")
    monkeypatch.setenv("LB_ACCESS_LOG", "")
    use(folder, monkeypatch)
    service = boot.service(ThreadRuntime(), None)
    try:
        assert service.settings == load(env=os.environ)
        control: Any = service.control
        assert control.service is service
    finally:
        service.stop()
