from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.health.policy import Overrides
from tests.health.backends import Act, Scripted
from tests.health.system import Daemon, Local, Store

StartDaemon = Callable[..., Daemon]
StartKeeper = Callable[..., Local]
MakeBackend = Callable[..., Scripted]


@pytest.fixture
def cold_store(tmp_path: Path) -> Iterator[Store]:
    """A store that is not started yet."""
    made = Store(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def store(cold_store: Store) -> Store:
    cold_store.start()
    return cold_store


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons on the test's store; all are killed at the end, and none may have left a traceback."""
    made: list[Daemon] = []

    def start(*options: str, interval: float = 0.3) -> Daemon:
        made.append(Daemon(tmp_path, *options, interval=interval, name=str(len(made))))
        return made[-1]

    yield start
    for daemon in made:
        daemon.kill()
    for daemon in made:
        assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


@pytest.fixture
def start_keeper(store: Store) -> Iterator[StartKeeper]:
    """Starts the daemon's loops in this process; all are ended at the end."""
    made: list[Local] = []

    def start(interval: float = 0.3, **overrides: Any) -> Local:
        made.append(Local(store, Overrides(interval, **overrides), f"local:{len(made)}"))
        return made[-1]

    yield start
    for local in made:
        local.kill()


@pytest.fixture
def make_backend() -> Iterator[MakeBackend]:
    """Starts backends; all are closed at the end."""
    made: list[Scripted] = []

    def make(act: Act | None = None) -> Scripted:
        made.append(Scripted(act))
        return made[-1]

    yield make
    for backend in made:
        backend.kill()
