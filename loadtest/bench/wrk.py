"""One run of `wrk`: a scenario against a port, and its result as numbers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.procs import on_core

MIB = 1024 * 1024
BODY_CONNECTIONS = 16
SCRIPT = Path(__file__).parent / "templates" / "wrk.lua"
ERROR_KINDS = ("connect", "read", "write", "timeout", "status")


class WrkError(RuntimeError):
    """`wrk` itself failed; the message is what it printed."""


@dataclass(frozen=True)
class Scenario:
    """What the clients do: requests for `path` over `connections` kept-alive connections.

    `upload` is the size of a request's body in bytes, 0 for a GET. With `keys` requests come, by their
    `X-Forwarded-For`, from so many clients in turn, each of which asks for a path of its own below `path`.
    """

    name: str
    title: str
    path: str
    connections: int
    upload: int = 0
    keys: int = 0

    @property
    def told(self) -> tuple[str, ...]:
        """What `templates/wrk.lua` is told."""
        if self.keys:
            return "keys", str(self.keys)
        return ("upload", str(self.upload)) if self.upload else ("get",)


KINDS = ("get", "download", "upload")


def scenarios(kinds: Sequence[str], connections: Sequence[int]) -> list[Scenario]:
    """Return the scenarios of `kinds`; small GETs once per number of `connections`."""
    small = [Scenario(f"get-{n}", f"small GETs, {n} connection{'s' * (n != 1)}", "/", n) for n in connections]
    down = Scenario("download", f"1 MiB responses, {BODY_CONNECTIONS} connections", "/1m", BODY_CONNECTIONS)
    up = Scenario(
        "upload", f"1 MiB uploads, {BODY_CONNECTIONS} connections", "/upload", BODY_CONNECTIONS, MIB
    )
    of_kind = {"get": small, "download": [down], "upload": [up]}
    return [scenario for kind in KINDS if kind in kinds for scenario in of_kind[kind]]


@dataclass(frozen=True)
class Sample:
    """The result of one run. Latencies in milliseconds, `seconds` as measured by wrk."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    """Count per kind: connect, read, write, timeout, status (answers of 400 and above)."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def failed(self) -> int:
        """Failed requests and connections of every kind; a run without any answer counts as one."""
        return sum(self.errors.values()) or int(self.requests == 0)


def parse(output: str) -> Sample:
    """Read the line that `templates/wrk.lua` prints. Raises `WrkError` when there is none."""
    for line in output.splitlines():
        if line.startswith("RESULT "):
            told: dict[str, int] = json.loads(line.removeprefix("RESULT "))
            return Sample(
                requests=told["requests"],
                seconds=told["microseconds"] / 1e6,
                p50_ms=told["p50"] / 1e3,
                p99_ms=told["p99"] / 1e3,
                errors={kind: told[kind] for kind in ERROR_KINDS},
            )
    raise WrkError(f"wrk gave no result:\n{output}")


def run(program: Path, scenario: Scenario, port: int, *, seconds: int, core: int) -> Sample:
    """Load `port` on loopback with `scenario` for `seconds` (at least 1), `wrk` pinned to `core`."""
    argv: list[str | Path] = [
        program,
        "-t1",
        f"-c{scenario.connections}",
        f"-d{seconds}s",
        "--timeout=20s",
        f"--script={SCRIPT}",
        f"http://127.0.0.1:{port}{scenario.path}",
        "--",
        *scenario.told,
    ]
    with on_core(core):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise WrkError(f"wrk ended with code {done.returncode}:\n{done.stdout}{done.stderr}")
    return parse(done.stdout)
