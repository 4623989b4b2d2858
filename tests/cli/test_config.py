"""`lb config check` and `lb config show`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Lb

GOOD = 'control_token = "hunter2"\n[pools.default]\nbackends = [{ url = "http://a:1" }]\n'
BAD = "wrokers = 1\n[pools.default]\nalgorithm = 'x'\n"


def test_a_good_file(lb: Lb) -> None:
    Path("lb.toml").write_text(GOOD)
    assert lb("config", "check") == (0, "lb.toml: ok (1 pool, 1 backend)\n", "")


def test_a_bad_file_lists_everything(lb: Lb) -> None:
    Path("lb.toml").write_text(BAD)
    result = lb("config", "check")
    assert (result.code, result.out) == (1, "")
    assert [line.split(": ")[0] for line in result.err.splitlines()] == ["lb.toml:1", "lb.toml:3"]


@pytest.mark.parametrize(
    "arguments", [["config", "check", "other.toml"], ["--config", "other.toml", "config", "check"]]
)
def test_another_file(lb: Lb, arguments: list[str]) -> None:
    Path("lb.toml").write_text(GOOD)
    Path("other.toml").write_text(BAD)
    assert "other.toml:1: wrokers" in lb(*arguments).err


def test_files_that_the_configuration_names_are_looked_at(lb: Lb) -> None:
    Path("lb.toml").write_text(GOOD + '[tls]\ncertificate = "no.pem"\nkey = "no.key"\n')
    result = lb("config", "check")
    assert (result.code, result.out) == (1, "")
    assert result.err == "tls.certificate: no.pem cannot be read: No such file or directory\n"


def test_check_as_json(lb: Lb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LB_BACKEND", "x")
    assert lb("config", "check", "--json").json == {
        "ok": True,
        "file": "",
        "problems": [],
        "notes": [
            "LB_BACKEND is not read; did you mean LB_BACKENDS?",
            "pool 'default' has no backends here; it answers 503 until some are added",
        ],
    }
    Path("lb.toml").write_text(BAD)
    result = lb("config", "check", "--json")
    assert (result.code, result.err, result.json["ok"], len(result.json["problems"])) == (1, "", False, 2)


def test_show_tells_values_and_where_they_came_from(lb: Lb, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lb.toml").write_text(GOOD)
    monkeypatch.setenv("LB_WORKERS", "3")
    monkeypatch.setenv("LB_STICKY_SECRET", "hunter2hunter2hunter2")
    monkeypatch.setenv("LB_REDIS_URL", "redis://user:hunter2@host:6379/1")
    result = lb("config", "show")
    assert (result.code, result.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()}
    assert rows["workers"] == ["3", "LB_WORKERS"]
    assert rows["bind"] == ['"0.0.0.0:8000"', "default"]
    assert rows["pools.default.backends[0].url"] == ['"http://a:1"', "lb.toml:3"]
    assert rows["control_token"] == ['"***"', "lb.toml:1"]
    assert rows["pools.default.sticky.secret"] == ['"***"', "LB_STICKY_SECRET"]
    assert rows["redis_url"] == ['"redis://***@host:6379/1"', "LB_REDIS_URL"]
    assert "hunter" not in result.out
    as_json = lb("config", "show", "--json")
    assert as_json.json["file"] == "lb.toml"
    assert as_json.json["settings"]["workers"] == {"value": 3, "from": "LB_WORKERS"}
    assert as_json.json["settings"]["control_token"] == {"value": "***", "from": "lb.toml:1"}
    assert "hunter" not in as_json.out
