"""The build hook: what it would compile exists, and unasked it adds nothing."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """hatch_build.py, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hook(build: ModuleType, out: Path, target: str = "wheel") -> Any:
    """The hook as hatchling makes it."""
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    metadata = ProjectMetadata(str(ROOT), PluginManager())
    return build.CompileHook(str(ROOT), {}, None, metadata, str(out), target)


def test_what_is_hot_exists(build: ModuleType) -> None:
    missing = [name for name in build.HOT if not (ROOT / "lb" / f"{name}.py").is_file()]
    assert missing == []
    assert len(set(build.HOT)) == len(build.HOT)


def test_no_bound_of_a_slice_has_an_effect(build: ModuleType) -> None:
    """Compiled, the bounds of a slice may be evaluated twice: `data[sock.send(data):]` would send twice."""
    found = [
        f"lb/{name}.py:{node.lineno}"
        for name in build.HOT
        for node in ast.walk(ast.parse((ROOT / "lb" / f"{name}.py").read_text()))
        if isinstance(node, ast.Slice)
        for bound in (node.lower, node.upper, node.step)
        for part in ast.walk(bound or ast.Pass())
        if isinstance(part, ast.NamedExpr | ast.Await | ast.Yield)
        or (isinstance(part, ast.Call) and not (isinstance(part.func, ast.Name) and part.func.id == "len"))
    ]
    assert found == []


def test_no_default_is_an_ellipsis(build: ModuleType) -> None:
    """Compiled, a default is worked out and must be of its type, or the import fails; also in a protocol."""
    found = [
        f"lb/{name}.py:{default.lineno}"
        for name in build.HOT
        for node in ast.walk(ast.parse((ROOT / "lb" / f"{name}.py").read_text()))
        if isinstance(node, ast.arguments)
        for default in (*node.defaults, *node.kw_defaults)
        if isinstance(default, ast.Constant) and default.value is ...
    ]
    assert found == []


@pytest.mark.parametrize("asked", [None, "", "0", "yes"])
@pytest.mark.parametrize("target", ["wheel", "sdist"])
def test_unasked_it_adds_nothing(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, target: str
) -> None:
    monkeypatch.delenv("LB_COMPILE", raising=False)
    if asked is not None:
        monkeypatch.setenv("LB_COMPILE", asked)
    made = hook(build, tmp_path, target)
    data: dict[str, Any] = {"force_include": {}}
    assert made.dependencies() == []
    made.initialize("standard", data)
    made.finalize("standard", data, "")
    assert data == {"force_include": {}}
    assert list(tmp_path.iterdir()) == []


def test_asked_for_it_needs_a_compiler_of_python(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LB_COMPILE", "1")
    needs = hook(build, tmp_path).dependencies()
    assert any(need.startswith("mypy") for need in needs)
    assert any(need.startswith("gevent") for need in needs), "the modules' types come from these"
    assert hook(build, tmp_path, "sdist").dependencies() == []


def test_an_editable_install_is_never_compiled(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compiled modules would hide every edit."""
    monkeypatch.setenv("LB_COMPILE", "1")
    with pytest.raises(RuntimeError, match="editable"):
        hook(build, tmp_path).initialize("editable", {"force_include": {}})
