"""The balancer as a user starts it: gunicorn and the health daemon, from this source tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.procs import Child, Children

ROOT = Path(__file__).resolve().parent.parent
LB = (sys.executable, "-m", "lb.cli")


def environment(
    *, backends: Sequence[int], port: int, control: int, workers: int, runtime: Path
) -> dict[str, str]:
    """The environment of a balancer on loopback in front of `backends` (ports), with its own store.

    Nothing that the caller's environment sets for another balancer reaches this one.
    """
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("LB_")},
        "LB_BACKENDS": ",".join(f"http://127.0.0.1:{backend}" for backend in backends),
        "LB_BIND": f"127.0.0.1:{port}",
        "LB_CONTROL_BIND": f"127.0.0.1:{control}",
        "LB_WORKERS": str(workers),
        "LB_RUNTIME_DIR": str(runtime),
    }


@dataclass(frozen=True)
class Installed:
    """A balancer to start: the interpreter of its environment, and the folder to start it in.

    Python looks for modules in that folder first: only the source tree's own has an `lb` in it.
    """

    python: Path
    folder: Path

    def start_gunicorn(
        self, children: Children, env: Mapping[str, str], *, name: str = "lb", core: int | None = None
    ) -> Child:
        """Start gunicorn with the balancer. It is not ready yet when this returns."""
        argv = [str(self.python), "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"), "lb.app"]
        return children.start(name, argv, core=core, env=env, cwd=self.folder)

    def start_health(
        self,
        children: Children,
        env: Mapping[str, str],
        *,
        interval: float,
        name: str = "lb-health",
        core: int | None = None,
    ) -> Child:
        """Start the health daemon; it probes every `interval` seconds."""
        argv = [str(self.python), "-m", "lb.health.cli", "--interval", f"{interval:g}"]
        return children.start(name, argv, core=core, env=env, cwd=self.folder)


SOURCE_TREE = Installed(Path(sys.executable), ROOT)


def backends_up(control: int) -> bool:
    """Whether the balancer sees every backend as probed and healthy, by its control listener's port."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{control}/v1/pools", timeout=5) as answer:
            pools = json.load(answer)["pools"].values()
    except OSError:
        return False
    states = [backend["state"] for pool in pools for backend in pool["backends"]]
    return bool(states) and all(state == "up" for state in states)


def status(env: Mapping[str, str]) -> Any:
    """What `lb status --json` tells. Raises `RuntimeError` with its message when it fails."""
    done = subprocess.run(
        [*LB, "status", "--json"],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"lb status: {(done.stderr or done.stdout).strip()}")
    return json.loads(done.stdout)
