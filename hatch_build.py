"""Build hook: with `LB_COMPILE=1` the modules of the hot path are compiled with mypyc.

The same sources, the same behaviour, about a fifth less time per request. It takes a C compiler and
Python's headers; without the variable the wheel is pure Python.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Every request goes through these, and they hold no types that another library makes at run time.
HOT = (
    "app",
    "client",
    "environ",
    "forwarded",
    "limits",
    "networks",
    "overload",
    "proxy/answer",
    "proxy/body",
    "proxy/conn",
    "proxy/dial",
    "proxy/fields",
    "proxy/forward",
    "proxy/http1",
    "proxy/messages",
    "proxy/tls",
    "proxy/transport",
    "proxy/upstream",
    "proxy/upstreams",
    "reply",
    "routing",
    "server",
    "service",
    "state/choice",
    "state/claims",
    "state/green",
    "state/held",
    "state/link",
    "state/wishes",
    "wsgi",
)
GROUP = "lb"


class CompileHook(BuildHookInterface[Any]):
    """Adds the compiled modules to the wheel, beside their sources."""

    PLUGIN_NAME = "custom"

    def _wanted(self) -> bool:
        return os.environ.get("LB_COMPILE") == "1" and self.target_name == "wheel"

    def dependencies(self) -> list[str]:
        """What compiling takes: mypyc, and the libraries whose types the modules use."""
        if not self._wanted():
            return []
        return ["mypy>=2", "setuptools>=75", "types-gevent", *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into a temporary folder, which lives until the wheel is written."""
        if not self._wanted():
            return
        if version == "editable":
            raise RuntimeError("LB_COMPILE=1 is not for editable installs: edits would have no effect")
        self._folder = tempfile.TemporaryDirectory(prefix="lb-build-")
        out = Path(self._folder.name)
        before = Path.cwd()
        os.chdir(self.root)
        try:
            _compile([f"lb/{name}.py" for name in HOT], out)
        finally:
            os.chdir(before)
        for built in sorted(out.rglob("*.so")):
            build_data["force_include"][str(built)] = str(built.relative_to(out))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        folder = getattr(self, "_folder", None)
        if folder is not None:
            folder.cleanup()


def _compile(sources: list[str], out: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution

    config = out / "mypy.ini"
    config.write_text(
        "[mypy]\npython_version = 3.11\nignore_missing_imports = True\nexplicit_package_bases = True\n"
    )
    extensions = mypycify(
        ["--config-file", str(config), *sources],
        opt_level="3",
        debug_level="0",
        group_name=GROUP,
        target_dir=str(out / "c"),
    )
    distribution = Distribution({"name": GROUP, "ext_modules": extensions})
    command: Any = distribution.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(out), str(out / "o")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    try:
        command.run()
    except Exception as exc:
        print(f"LB_COMPILE=1: the hot path could not be compiled: {exc}", file=sys.stderr)
        raise
