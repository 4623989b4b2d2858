from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from lb.errors import ConfigError, StoreUnavailable
from lb.health import once
from lb.health.policy import Overrides
from lb.model import HealthPolicy
from lb.settings import BackendSpec, PoolConfig, Settings
from lb.state.store import store_url
from tests.health.backends import answer, free_port
from tests.health.conftest import MakeBackend
from tests.health.system import Store

LINE = Overrides(interval=10)


def configured(*urls: str, **policy: str) -> Settings:
    health = HealthPolicy(**policy)  # type: ignore[arg-type]
    return Settings(pools={"web": PoolConfig(backends=tuple(map(BackendSpec, urls)), health=health)})


def test_shows_all_and_writes_nothing(
    store: Store, make_backend: MakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = make_backend(), make_backend(answer(b"HTTP/1.1 500 \r\n\r\n"))
    store.declare(good)
    assert once.run(store.url, False, Settings(), LINE, 8, as_json=False) == 0
    assert good.id in capsys.readouterr().out
    version = store.declare(good, bad).version
    assert once.run(store.url, True, Settings(), LINE, 8, as_json=False) == 1
    assert "status 500, expected 200-399" in capsys.readouterr().out
    assert once.run(store.url, False, Settings(), LINE, 8, as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["shared"] is True
    assert {one["id"]: one["ok"] for one in found["backends"]} == {good.id: True, bad.id: False}
    assert store.registry.version("default") == version
    assert store.healths() == ["unknown", "unknown"]
    both = Overrides(interval=10, status="200,500")
    assert once.run(store.url, False, Settings(), both, 8, as_json=False) == 0


def test_without_a_store_the_configuration_is_taken(
    tmp_path: Path, make_backend: MakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = configured(make_backend().url)
    assert once.run(store_url("", tmp_path), False, settings, LINE, 8, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shared"] is False
    assert found["backends"][0]["pool"] == "web"


def test_a_store_that_must_be_there_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        once.run(store_url("", tmp_path), True, configured("http://127.0.0.1:1"), LINE, 8, as_json=True)


def test_no_backend_is_a_failure(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none configured"):
        once.run(store_url("", tmp_path / "empty"), False, Settings(), LINE, 8, as_json=True)
    with pytest.raises(ConfigError, match="in the shared state"):
        once.run(store.url, False, Settings(), LINE, 8, as_json=True)


def test_all_at_the_same_time(make_backend: MakeBackend) -> None:
    slow = make_backend(lambda sock: time.sleep(0.3))
    started = time.monotonic()
    (snapshot,), _ = once.snapshots("unix:///nowhere", False, configured(*[slow.url]))
    backends = {f"b{n}": next(iter(snapshot.backends.values())) for n in range(20)}
    rows = once.probe_all([type(snapshot)("p", 1, snapshot.settings, backends)], LINE, 32, {})
    assert time.monotonic() - started < 20 * 0.3 / 2
    assert len(rows) == 20
    assert not any(row.outcome.ok for row in rows)


def test_what_cannot_be_probed_is_a_row_too() -> None:
    settings = configured(f"http://127.0.0.1:{free_port()}", path="no path")
    pools, _ = once.snapshots("unix:///nowhere", False, settings)
    (row,) = once.probe_all(pools, LINE, 8, {})
    assert not row.outcome.ok
    assert "path" in row.outcome.reason
    assert math.isfinite(row.outcome.seconds)
