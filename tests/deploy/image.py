"""The image, built without a container engine: `buildah`, on a base made with `debootstrap`.

The base gets the name that stands in the Dockerfile's FROM: the same Debian with the same Python, and
`python` and `pip` where that image has them. How pip reaches its package index on this machine is lent to the
build as files that are mounted; they are no part of the image.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.run import Process, clean_env

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/lb:test"
PACKAGES = "ca-certificates,python3,python3-dev,python3-pip,python3-venv"

PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "cert")


def base_name() -> str:
    """What the Dockerfile builds on, such as python:3.13-slim-trixie."""
    found = re.search(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


class Image:
    """The built image, a container of it, and where its files are.

    `work` holds everything, in a storage of its own: images and containers of the user's are left alone.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self._base_root = work / "base"
        self._storage = (
            "--storage-driver", os.environ.get("STORAGE_DRIVER", "vfs"),
            "--root", str(work / "store"), "--runroot", str(work / "runroot"),
        )  # fmt: skip
        self._made_base()
        self._built()
        self.container = self.tool("from", "--pull-never", IMAGE)
        self.files = Path(self.tool("mount", self.container))
        self.config: dict[str, Any] = json.loads(self.tool("inspect", "--type", "image", IMAGE))["Docker"][
            "config"
        ]

    def close(self) -> None:
        """Remove the container. What was mounted is unmounted."""
        for arguments in (("umount", self.container), ("rm", self.container)):
            with contextlib.suppress(AssertionError):
                self.tool(*arguments)

    def tool(self, *arguments: str) -> str:
        """Run buildah to its end; return what it printed."""
        done = subprocess.run(
            ("buildah", *self._storage, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"buildah {' '.join(arguments)}: {done.stderr[-4000:]}"
        return done.stdout.strip()

    def _made_base(self) -> None:
        name = f"localhost/{base_name()}"
        if self.tool("images", "--quiet", "--filter", f"reference={name}"):
            return
        # trixie, of python:3.13-slim-trixie
        suite, version = name.rpartition("-")[2], name.rpartition(":")[2].partition("-")[0]
        shutil.rmtree(self._base_root, ignore_errors=True)
        command = ("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, self._base_root)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
        local = self._base_root / "usr/local/bin"
        for alias, program in {"python": "python3", "python3": "python3", "pip": "pip3"}.items():
            (local / alias).symlink_to(f"/usr/bin/{program}")
        assert (self._base_root / f"usr/bin/python{version}").exists(), (
            f"{suite} has another Python than {name}"
        )
        container = self.tool("from", "scratch")
        self.tool("add", "--quiet", container, str(self._base_root), "/")
        self.tool(
            "config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container
        )
        self.tool("commit", "--quiet", "--rm", container, name)
        shutil.rmtree(self._base_root)

    def _built(self) -> None:
        lent = self.work / "pip"
        lent.mkdir(exist_ok=True)
        (lent / "pip.conf").write_text(pip_settings(lent))
        self.tool(
            "build", "--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never",
            "--volume", f"{lent}:/run/pip:ro", "--volume", f"{lent}/pip.conf:/etc/pip.conf:ro",
            "--tag", IMAGE, str(ROOT),
        )  # fmt: skip
        self.tool("rmi", "--prune")  # the image of a run before, where `work` is kept

    # Its processes.

    def run(self, folder: Path, name: str, *command: str, **env: str) -> Process:
        """Start `command` with `buildah run`. Signals are for `inner(process)`: buildah passes none on."""
        options = [f"--env={key}={value}" for key, value in env.items()]
        arguments = (
            "buildah", *self._storage, "run", "--isolation", "chroot", "--network", "host", *options,
            self.container, "--", *command,
        )  # fmt: skip
        return Process(folder, name, *arguments, env=clean_env(), cwd=folder)

    def contain(self, folder: Path, name: str, *command: str, **env: str) -> Process:
        """Start the entry point as an engine would: PID 1, a read-only root, an environment of its own.

        Where no Redis is configured there is a tmpfs for the embedded store.
        """
        steps = """
            mount --bind "$1" "$1"
            mount -o remount,bind,ro "$1"
            mount -t proc proc "$1/proc"
            mount --rbind /dev "$1/dev"
            [ -n "$NO_TMPFS" ] || mount -t tmpfs -o mode=1777 tmpfs "$1/run/lb"
            exec chroot --userspec="$2" "$1" /usr/bin/env "${@:3}"
        """
        inner = (*self.environment(env), "/bin/sh", "-c", 'cd "$0" && exec "$@"', self.config["WorkingDir"])
        words = (*self.config["Entrypoint"], *(command or self.config["Cmd"]))
        arguments = (
            "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL",
            "bash", "-ec", steps, "container", str(self.files), self.config["User"], *inner, *words,
        )  # fmt: skip
        no_tmpfs = {"NO_TMPFS": env.get("LB_REDIS_URL", "")}
        return Process(folder, name, *arguments, env=clean_env(no_tmpfs), cwd=folder)

    def environment(self, more: dict[str, str]) -> list[str]:
        """Arguments for `env`: nothing but what the image says, and `more`."""
        return ["-i", *self.config["Env"], *(f"{key}={value}" for key, value in more.items())]

    def enter(self, pid: int, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `command` in the container whose PID 1 is `pid` outside, as an engine runs a health check."""
        user = str(self.config["User"].partition(":")[0])
        arguments = (
            "nsenter", f"--target={pid}", "--mount", "--pid", "--root", "--wd", f"--setuid={user}",
            f"--setgid={user}", "--", "/usr/bin/env", *self.environment(env), *command,
        )  # fmt: skip
        return subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def inner(process: Process) -> int:
    """The process that matters below `process`: past buildah, its helpers, unshare."""
    pid = process.pid
    while True:
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        if not comm.startswith(("buildah", "memfd:buildah", "unshare")):
            return pid
        threads = Path(f"/proc/{pid}/task").glob("*/children")
        children = [word for path in threads for word in path.read_text().split()]
        if not children:
            raise ProcessLookupError(f"nothing runs below {comm}")
        pid = int(children[0])


def pip_config() -> dict[str, str]:
    """What pip is told on this machine: by its files and its variables, the later wins."""
    listed = subprocess.run((sys.executable, "-m", "pip", "config", "list"), capture_output=True, text=True)
    pairs = (line.partition("=") for line in listed.stdout.splitlines())
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, _, value in pairs}


def pip_settings(folder: Path) -> str:
    """What of it says how the package index is reached, as a pip.conf; certificates go to `folder`."""
    config = {name: " ".join(text.split()) for name, text in pip_config().items() if name in PIP_KEYS}
    if "cert" in config:
        shutil.copy(config["cert"], folder / "ca.crt")
        config["cert"] = "/run/pip/ca.crt"
    return "\n".join(["[global]", *(f"{name} = {text}" for name, text in config.items())]) + "\n"


def index_hosts() -> set[str]:
    """The machines that pip asks here, where it was told which."""
    return set(re.findall(r"://(?:[^/@\s]*@)?([^/:\s]+)", " ".join(pip_config().values())))
