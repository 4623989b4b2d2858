"""Where other balancers' programs are found, and what is said of those that are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loadtest.bench.binaries import EXTRA, Programs, version


def program(folder: Path, name: str, told: str = "") -> Path:
    """A program that prints `told` whatever it is asked."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{told}'\n")
    path.chmod(0o755)
    return path


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    path = program(tmp_path, "my-nginx")
    assert Programs({"nginx": path}).find("nginx") == path


def test_what_is_given_and_not_there_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "wrk")
    assert Programs().find("wrk") == tmp_path / "wrk"
    assert Programs({"wrk": tmp_path / "missing"}).find("wrk") is None


def test_the_distributions_nginx_is_found_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = program(tmp_path, "nginx")
    assert Programs().find("nginx-distro") == path
    assert Programs().find("nginx") != path, "that one is the wheel's"


@pytest.mark.parametrize(
    ("name", "brings"), [("wrk", "the distribution's package wrk"), ("envoy", EXTRA), ("caddy", EXTRA)]
)
def test_what_is_missing_says_what_brings_it(tmp_path: Path, name: str, brings: str) -> None:
    with pytest.raises(FileNotFoundError) as found:
        Programs({name: tmp_path / "missing"}).require(name)
    assert str(found.value) == f"{name} is not installed: {brings}"


def test_nobody_knows_other_programs() -> None:
    assert Programs().find("no-such-program") is None


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("nginx version: nginx/1.31.2", "1.31.2"),
        ("HAProxy version 2.8.5-1 2024/01/01", "2.8.5"),
        ("v2.11.1 h1:abc=", "2.11.1"),
        ("envoy  version: 0123abc4.56def/1.40.0/Clean", "1.40.0"),
        ("nothing to tell", ""),
    ],
)
def test_versions(tmp_path: Path, told: str, wanted: str) -> None:
    assert version(program(tmp_path, "program", told)) == wanted


def test_a_version_in_the_programs_path_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "python3.11"
    folder.mkdir()
    path = program(folder, "envoy")
    path.write_text('#!/bin/sh\necho "$0 version: 1.40.0"\n')
    assert version(path) == "1.40.0"
