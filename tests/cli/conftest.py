"""One real store for the tests of the command line, and a way to run commands in this process."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lb.cli import run
from lb.state.embedded import start_or_join
from lb.state.registry import Registry
from lb.state.store import connect, store_url


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, decoded."""
        return json.loads(self.out)


Lb = Callable[..., Result]


@pytest.fixture
def lb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lb:
    """Runs `lb ARGUMENTS` in an empty folder, with no variable that configures it. Nothing may be raised."""
    for name in ("LB_CONFIG", "LB_BACKENDS", "LB_REDIS_URL", "LB_RUNTIME_DIR"):
        # Set, then deleted: what a command itself sets is undone afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(arguments)
        return Result(code, *capsys.readouterr())

    return command


@pytest.fixture(scope="module")
def store_dir() -> Iterator[Path]:
    """The folder of an embedded store that runs. Its path is short: a socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="lb-t-"))
    store = start_or_join(folder)
    yield folder
    store.leave()
    shutil.rmtree(folder)


@pytest.fixture
def registry(store_dir: Path, lb: Lb, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The shared state that `lb` uses, empty."""
    monkeypatch.setenv("LB_RUNTIME_DIR", str(store_dir))
    client = connect(store_url("", store_dir))
    client.flushdb()  # this one is ours alone
    yield Registry(client)
    client.close()
