"""What a test needs from the machine: skipped without it on a developer's, failed on CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def on_ci() -> bool:
    """Does this run on CI, where everything that can be installed is?"""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(what: str, package: str) -> NoReturn:
    """Skip the test, or fail it on CI: `what` is not there; `package` is Debian's name of what brings it."""
    reason = f"{what} is not on this machine (Debian: apt-get install {package})"
    if on_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need_binary(name: str, package: str) -> str:
    """The path of the program `name`. Without it the test is skipped, and fails on CI."""
    path = shutil.which(name)
    if path is None and Path("/usr/sbin", name).exists():  # which is not on every user's PATH
        path = f"/usr/sbin/{name}"
    if path is None:
        missing(name, package)
    return path
