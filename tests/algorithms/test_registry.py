"""Algorithms by name: those built in, those installed, and those installed that are broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from lb import algorithms
from lb.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    BrokenAlgorithm,
    UnknownAlgorithm,
    algorithm,
    faults,
    names,
)
from lb.algorithms.base import Algorithm
from lb.algorithms.request import HeadRequest
from lb.config_checks import check_algorithm
from lb.config_table import markdown
from tests.algorithms.model import backend, pool
from tests.support.example import blocks
from tests.support.example import install as installed

ROOT = Path(__file__).parents[2]
LB = str(Path(sys.executable).with_name("lb"))

GOOD = """\
from lb.algorithms.base import Algorithm
class Own(Algorithm):
    name = "{name}"
    rule = "first"
    def candidates(self, request, chance):
        return [backend.id for backend in self.available]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one module and one entry point where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        algorithms._installed.cache_clear()
        algorithm.cache_clear()

    def put(entry: str, source: str, *, dist: str = "own", target: str = "") -> None:
        module = f"{dist}_module"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{dist}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[lb.algorithms]\n{entry} = {target or module + ':Own'}\n")
        sys.modules.pop(module, None)
        forget()

    forget()
    yield put
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_those_built_in(name: str) -> None:
    found = algorithm(name)
    assert issubclass(found, Algorithm)
    assert found.name == name
    assert not algorithms._fault(name, found)
    assert check_algorithm(name) == name


def test_there_are_ten_and_a_default() -> None:
    assert len(set(ALGORITHMS)) == 10
    assert DEFAULT_ALGORITHM in ALGORITHMS
    assert names()[:10] == ALGORITHMS


def test_the_page_tells_of_each_and_of_no_other() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    table = text.partition("## Which one")[2].partition("## What holds for all")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)
    titles = ", ".join(re.findall(r"^### (.+)$", text, re.MULTILINE)).split(", ")
    assert sorted(rows) == sorted(ALGORITHMS)
    assert titles == rows


def test_an_unknown_one() -> None:
    with pytest.raises(UnknownAlgorithm, match="'leastconn' is no algorithm"):
        algorithm("leastconn")
    with pytest.raises(ValueError, match="did you mean 'ip-hash'"):
        check_algorithm("iphash")


def test_an_installed_one(install: Install) -> None:
    install("own", GOOD.format(name="own"))
    assert names() == (*ALGORITHMS, "own")
    assert faults() == ()
    assert check_algorithm("own") == "own"
    chosen = algorithm("own")(pool("own", backend("b"), backend("a"), backend("c", 0)))
    assert list(chosen.candidates(None, Random(1).random)) == ["a", "b"]
    assert algorithm("own") is algorithm("own")


def test_the_page_of_settings_is_the_same_wherever_it_is_made(install: Install) -> None:
    install("own", GOOD.format(name="own"))
    assert names() != ALGORITHMS
    assert (ROOT / "docs" / "settings.md").read_text() == markdown()


@pytest.mark.parametrize(
    ("entry", "source", "target", "text"),
    [
        ("own", "import nothing_of_the_kind", "", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("own", "raise RuntimeError('no')", "", "cannot be loaded: RuntimeError: no"),
        ("own", "x = (", "", "cannot be loaded: SyntaxError"),
        ("own", "", "", "cannot be loaded: AttributeError"),
        ("own", "", "gone_module:Own", "cannot be loaded: ModuleNotFoundError"),
        ("own", GOOD.format(name="other"), "", "calls itself 'other'"),
        ("own", "Own = 1", "", "is no subclass of lb.algorithms.base.Algorithm"),
        ("own", "class Own: name = 'own'", "", "is no subclass"),
        ("own", GOOD.format(name="own").replace('"first"', '"best"'), "", "has the rule 'best'; there are"),
        ("own", GOOD.format(name="own").replace("rule =", "order ="), "", "has the order 'first'; there are"),
        ("own", GOOD.format(name="own").replace('rule = "first"', ""), "", "needs both rule and candidates"),
        ("Own", GOOD.format(name="Own"), "", "lower-case letters"),
    ],
)
def test_a_broken_one_is_named_and_troubles_nobody_else(
    install: Install, entry: str, source: str, target: str, text: str
) -> None:
    install(entry, source, target=target)
    where = f"the entry point {entry!r} ({target or 'own_module:Own'}) of own 1.2"
    with pytest.raises(BrokenAlgorithm, match=re.escape(text)) as caught:
        algorithm(entry)
    assert str(caught.value).startswith(where)
    with pytest.raises(ValueError, match=re.escape(where)):
        check_algorithm(entry)
    assert entry in names()
    assert faults() == (str(caught.value),)
    assert check_algorithm("random") == "random"
    assert algorithm("least-time").name == "least-time"


def test_a_built_in_name_cannot_be_taken(install: Install) -> None:
    install("random", GOOD.format(name="random"))
    assert algorithm("random").__module__ == "lb.algorithms.chance"
    assert names() == ALGORITHMS
    (fault,) = faults()
    assert "'random'" in fault
    assert "of own 1.2 takes the name" in fault


def test_one_name_from_two_distributions(install: Install) -> None:
    install("own", GOOD.format(name="own"))
    install("own", GOOD.format(name="own"), dist="rival")
    with pytest.raises(BrokenAlgorithm, match=r"there twice: .* of (own|rival) 1.2 and .* of (own|rival)"):
        algorithm("own")


def test_importing_it_is_cheap() -> None:
    """Neither an algorithm nor what finds installed ones is imported before it is needed."""
    program = (
        "import sys, json; before = set(sys.modules); import lb.algorithms;"
        "lb.algorithms.algorithm('round-robin'); print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    new = set(json.loads(done.stdout))
    assert "lb.algorithms.ordered" in new
    assert not new & {"lb.algorithms.chance", "lb.algorithms.hashing", "hashlib", "importlib.metadata"}


# The example of the documentation.


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example was built and installed into, without a network."""
    return installed(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target"))


def run(example: Path, *command: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the example installed."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
    environ |= {"PYTHONPATH": str(example), **more}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=example, timeout=30)
    assert done.returncode == code, done.stderr
    return done


def test_the_example_is_short() -> None:
    assert set(blocks()) == {"lb_tenant.py", "pyproject.toml"}
    code = blocks()["lb_tenant.py"].partition("class ")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_example_is_accepted_wherever_a_name_is(example: Path) -> None:
    listed = run(example, LB, "algorithm", "list")
    assert listed.stdout.splitlines() == [
        "round-robin (default)",
        *ALGORITHMS[1:],
        "tenant",
    ]
    assert listed.stderr == ""
    run(example, LB, "config", "check", LB_ALGORITHM="tenant")
    refused = run(example, LB, "config", "check", LB_ALGORITHM="tenants", code=1)
    assert "'tenants' is no algorithm; did you mean 'tenant'?" in refused.stderr + refused.stdout


def test_the_example_chooses(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(example)
    algorithms._installed.cache_clear()
    try:
        chosen = algorithm("tenant")(pool("tenant", *[backend(f"b{n}") for n in range(10)]))
        empty = algorithm("tenant")(pool("tenant"))
    finally:
        algorithm.cache_clear()
        algorithms._installed.cache_clear()
    chance = Random(1).random
    seen = set()
    for tenant in range(200):
        request = HeadRequest(b"GET / HTTP/1.1\r\nX-Tenant: %d\r\n" % tenant, "192.0.2.1", "/")
        found = list(chosen.candidates(request, chance))
        assert found == list(chosen.candidates(request, chance))
        assert 1 <= len(found) == len(set(found)) <= 2
        seen.update(found)
        assert list(empty.candidates(request, chance)) == []
    assert seen == {f"b{n}" for n in range(10)}
