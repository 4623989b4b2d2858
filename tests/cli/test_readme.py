"""What the README prints is true: its example loads, its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lb.config import load, read
from lb.config_checks import did_you_mean
from lb.config_table import BY_ENV
from lb.state.registry import Registry
from tests.cli.conftest import Lb

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_example_of_a_file_loads_without_a_note(tmp_path: Path) -> None:
    [text] = blocks("toml")
    file = tmp_path / "lb.toml"
    file.write_text(text)
    loaded = read(str(file), {})
    assert (loaded.problems, loaded.notes) == ((), ())
    wrong = file.read_text().replace("weight", "wieght", 1)
    file.write_text(wrong)
    [told] = blocks("console")
    assert read(str(file), {}).problems[0].endswith(told.splitlines()[1])


def test_the_variable_can_be_read() -> None:
    [text] = re.findall(r"LB_BACKENDS='([^']*)' gunicorn", README)
    assert [one.weight for one in load(None, {"LB_BACKENDS": text}).pools["default"].backends] == [1, 3]
    for name in set(re.findall(r"\bLB_[A-Z_]+\b", README)) - {"LB_CONFIG"}:
        assert name in BY_ENV, name + did_you_mean(name, BY_ENV)


def test_the_tour_of_the_command_line_works_as_printed(
    lb: Lb, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LB_CONTROL_BIND", "unix:/nonexistent/control.sock")
    [tour] = [block.splitlines() for block in blocks("sh") if "lb status" in block]
    for line in tour:
        program, *words = shlex.split(line)
        result = lb(*words)
        # No balancer runs here, of which a health check would tell.
        assert (program, result.code) == ("lb", 1 if words == ["healthcheck"] else 0), (line, result)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z]+)", " ".join(blocks("sh"))))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
