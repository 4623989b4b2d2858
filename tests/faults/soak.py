"""The whole system under a steady load, and one random fault after the other, for as long as asked.

    python -m tests.faults.soak [--minutes N] [--seed S]

Two balancers with two workers each share a store, three backends and two health daemons; the seed says
whether backends that fail are ejected, or tried by every request until a probe finds out. Each fault is done
under clients that check every answer, and mended before the next one. Printed are the seed, each fault with
what became of the requests, and in the end what is left: requests that failed, connections that still count
as claimed, memory that the workers have gained. Requests that were lost with a process that was killed are
counted apart: those of its own clients, and no more than they can have had under way. The exit code is 1 when
a promise was broken. The same seed does the same faults in the same order; what they meet is another matter.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lb.algorithms import names
from lb.errors import LbError
from lb.model import Backend
from lb.settings import RETRY_ON
from lb.state import decide
from tests.faults.crowd import Crowd, exact, stage
from tests.support.chaos import Proxy
from tests.support.processes import Balancer, PlainBackend, System
from tests.support.run import Process, alive, descendants, eventually

MEMORY = 32 * 1024 * 1024
"""Bytes that a worker may have gained in the end, however long it was."""

_ON = str([*RETRY_ON, "503"])
WAYS = (
    f"retry = {{on = {_ON}}}\noutlier = {{enabled = true, base_ejection_time = 1}}",
    f"retry = {{on = {_ON}, budget = 1.0}}\noutlier = {{enabled = false}}",
)
"""Who fails is ejected, and the usual retries are enough; or nobody is, and each request may need one."""


@dataclass(frozen=True)
class Excuse:
    """What a fault may cost the clients of one balancer; those of the others it may cost nothing."""

    port: int
    #: Requests of each client that may be cut: that which it has under way when a process dies, and so on.
    tries: int = 1
    #: Does nobody listen for a while?
    away: bool = False


@dataclass
class Report:
    """What became of it."""

    faults: int = 0
    requests: int = 0
    #: Answers that were not the right ones, or did not come, with no excuse.
    failed: list[str] = field(default_factory=list)
    #: Requests that ended with the process that had them.
    cut: int = 0
    #: Connections that were refused while the balancer that was killed was not there.
    refused: int = 0
    in_flight: int = 0
    #: Bytes that the largest worker has more than the largest one had at the start.
    gained: int = 0
    #: What else did not come true.
    broken: list[str] = field(default_factory=list)

    def promises_broken(self) -> list[str]:
        """What was promised and is not so; empty when all is well."""
        found = list(self.broken)
        if self.failed:
            found.append(f"{len(self.failed)} requests failed, the first: {self.failed[0]}")
        if self.in_flight:
            found.append(f"{self.in_flight} connections are claimed by nobody")
        if self.gained > MEMORY:
            found.append(f"a worker has gained {self.gained >> 20} MiB")
        return found

    def count(self, early: Sequence[str], late: Sequence[str], clients: int, excuse: Excuse | None) -> None:
        """What went wrong for the clients of one balancer: before all was mended, and afterwards."""
        lost = [failure for failure in early if excuse and stage(failure)]
        away = [failure for failure in lost if excuse and excuse.away and stage(failure) == "connecting"]
        cut = [failure for failure in lost if stage(failure) != "connecting"]
        most = excuse.tries * clients if excuse else 0
        self.refused += len(away)
        self.cut += len(cut[:most])
        self.failed += (Counter([*early, *late]) - Counter(away) - Counter(cut[:most])).elements()

    def line(self) -> str:
        """All of it in one line."""
        return (
            f"{self.faults} faults, {self.requests} requests, {len(self.failed)} failed, {self.cut} cut and "
            f"{self.refused} refused with what was killed, {self.in_flight} in flight when idle, "
            f"workers {self.gained / 2**20:+.1f} MiB"
        )


def memory(pid: int) -> int:
    """Bytes of the process that are in memory; 0 when it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


class Soak:
    """The system, and what can be done to it."""

    def __init__(self, system: System, chance: random.Random, stack: ExitStack) -> None:
        self.system = system
        self.chance = chance
        self.store = system.store()
        self.backends: list[PlainBackend] = [system.plain_backend() for _ in range(3)]
        self.proxy = stack.enter_context(Proxy(self.store.socket))
        urls = ", ".join(f'{{url = "{one.url}"}}' for one in self.backends)
        how = self.chance.choice(WAYS)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        self.balancers: list[Balancer] = [
            system.balancer(
                store=f"redis://127.0.0.1:{self.proxy.port}/0",
                config=f'[pools.default]\nbackends = [{urls}]\nhealth = {{path = "/probe"}}\n{how}\n',
                workers=2,
                stdout=nowhere,
                wait=False,
            )
            for _ in range(2)
        ]
        for one in self.balancers:
            one.start()
            one.ended_badly = True  # what it logs about killed workers is no matter here
        #: What the fault that is done now may cost.
        self.excuse: Excuse | None = None
        self.health: list[Process] = [self.daemon() for _ in range(2)]
        self.ports = [one.port for one in self.balancers]
        self.view = self.balancers[0].view
        eventually(self.settled, "the system to be ready")

    def daemon(self) -> Process:
        """A health daemon, which has found its place."""
        made = self.system.health(self.balancers[0], 0.5)
        made.until(
            lambda: "probing for the fleet" in made.err or "standing by" in made.err, "a health daemon"
        )
        return made

    def excused(self, port: int) -> Excuse | None:
        """What the fault may cost the clients of the balancer on this port."""
        return self.excuse if self.excuse and self.excuse.port == port else None

    def settled(self) -> bool:
        """Is everything there and in its place?"""
        with contextlib.suppress(LbError, OSError):
            return (
                all(one.readyz()["status"] == "ready" and len(one.worker_pids) == 2 for one in self.balancers)
                and self.view.workers() == 4
                and {self.view.states().get(one.id) for one in self.backends} == {"up"}
            )
        return False

    def largest(self) -> int:
        """Bytes of the largest worker."""
        return max(memory(pid) for one in self.balancers for pid in one.worker_pids)

    def pause(self, longest: float = 2.0) -> None:
        """Let a fault last."""
        time.sleep(self.chance.uniform(0.1, longest))

    def stop(self, pid: int, longest: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        os.kill(pid, signal.SIGSTOP)
        try:
            self.pause(longest)
        finally:
            os.kill(pid, signal.SIGCONT)

    # The faults. Each is mended when it returns.

    def kill_worker(self) -> None:
        """kill -9 a worker"""
        one = self.chance.choice(self.balancers)
        pid = self.chance.choice(one.worker_pids)
        self.excuse = Excuse(one.port)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), "a worker to die")

    def kill_master(self) -> None:
        """kill -9 a master, and start it anew when its workers have gone"""
        one = self.chance.choice(self.balancers)
        family = descendants(one.pid)
        self.excuse = Excuse(one.port, tries=2, away=True)
        one.send(signal.SIGKILL)
        eventually(lambda: not any(map(alive, family)), "its workers to notice, to finish and to end")
        one.launch()
        one.start()

    def kill_gunicorn(self) -> None:
        """kill -9 a master with its workers, and start it anew"""
        one = self.chance.choice(self.balancers)
        family = descendants(one.pid)
        self.excuse = Excuse(one.port, tries=2, away=True)
        os.killpg(one.pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, family)), "all of it to die")
        one.launch()
        one.start()

    def stop_worker(self) -> None:
        """stop a worker, at times for longer than its lease"""
        pid = self.chance.choice(self.chance.choice(self.balancers).worker_pids)
        self.stop(pid, 7.0)

    def kill_backend(self) -> None:
        """kill -9 a backend"""
        number = self.chance.randrange(len(self.backends))
        killed = self.backends[number]
        killed.kill()
        self.pause()
        self.backends[number] = self.system.plain_backend(killed.port)

    def stop_backend(self) -> None:
        """stop a backend"""
        self.stop(self.chance.choice(self.backends).process.pid, 1.5)

    def reset_backend(self) -> None:
        """let a backend reset its connections"""
        self.fail("reset")

    def busy_backend(self) -> None:
        """let a backend answer 503"""
        self.fail("503")

    def fail(self, kind: str) -> None:
        """Let a backend meet all requests, probes as well, with this for a while."""
        one = self.chance.choice(self.backends)
        one.fault(kind)
        self.pause()
        one.fault("")

    def kill_health(self) -> None:
        """kill -9 a health daemon"""
        number = self.chance.randrange(len(self.health))
        self.health[number].signal(signal.SIGKILL)
        self.health[number].wait()
        self.pause()
        self.health[number] = self.daemon()

    def kill_store(self) -> None:
        """kill -9 the store, which comes back empty"""
        self.store.stop()
        self.pause()
        self.store.start()

    def stop_store(self) -> None:
        """stop the store"""
        assert self.store.process is not None
        self.stop(self.store.process.pid, 3.0)

    def pause_store(self) -> None:
        """CLIENT PAUSE"""
        milliseconds = self.chance.randrange(100, 3000)
        what = self.chance.choice(("ALL", "WRITE"))
        self.view.client.execute_command("CLIENT", "PAUSE", milliseconds, what)  # type: ignore[no-untyped-call]
        time.sleep(milliseconds / 1000)

    def cut_store(self) -> None:
        """cut the connections to the store"""
        self.chance.choice((self.proxy.reset, self.proxy.close))()
        self.proxy.cut = self.chance.randrange(1, 1000)
        self.pause(1.0)
        self.proxy.cut = None

    def silence_store(self) -> None:
        """lose what is sent to the store and by it"""
        self.proxy.silent = True
        self.pause()
        self.proxy.silent = False

    def delay_store(self) -> None:
        """delay what the store says"""
        self.proxy.delay = self.chance.choice((0.005, 0.02, 0.1, 1.0))
        self.pause()
        self.proxy.delay = 0.0

    def reload(self) -> None:
        """HUP"""
        one = self.chance.choice(self.balancers)
        old = set(one.worker_pids)
        one.send(signal.SIGHUP)
        eventually(lambda: not old & set(one.worker_pids), "the old workers to go")

    def come_and_go(self) -> None:
        """add a backend, and remove it"""
        extra = self.system.plain_backend()
        self.view.registry.change("default", decide.add(Backend(extra.id, extra.url)))
        self.pause()
        self.view.registry.change("default", decide.remove(extra.id))
        eventually(lambda: extra.id not in self.view.states(), "it to be gone")
        self.pause(0.5)
        extra.process.end()

    def drain(self) -> None:
        """drain a backend, and let it come back"""
        one = self.chance.choice(self.backends)
        self.view.registry.change("default", decide.update(one.id, admin="drain"))
        self.pause()
        self.view.registry.change("default", decide.update(one.id, admin="ready"))

    def switch(self) -> None:
        """switch the algorithm"""
        for name in self.chance.sample(names(), 3):
            self.view.registry.change("default", decide.switch(name))
            self.pause(0.5)
        self.view.registry.change("default", decide.switch("round-robin"))


Fault = Callable[[], None]


def faults(soak: Soak) -> list[Fault]:
    """All of them."""
    return [
        soak.kill_worker,
        soak.kill_master,
        soak.kill_gunicorn,
        soak.stop_worker,
        soak.kill_backend,
        soak.stop_backend,
        soak.reset_backend,
        soak.busy_backend,
        soak.kill_health,
        soak.kill_store,
        soak.stop_store,
        soak.pause_store,
        soak.cut_store,
        soak.silence_store,
        soak.delay_store,
        soak.reload,
        soak.come_and_go,
        soak.drain,
        soak.switch,
    ]


def run(seconds: float, seed: int, choice: Callable[[Soak], list[Fault]] = faults) -> Report:
    """Do one fault of `choice` after the other; at least one."""
    report = Report()
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="lb-soak-") as folder, ExitStack() as stack:
        system = System(Path(folder))
        stack.callback(system.close)
        soak = Soak(system, chance, stack)
        wanted = choice(soak)
        began = time.monotonic()
        first = 0
        while not report.broken and (not report.faults or time.monotonic() - began < seconds):
            fault = chance.choice(wanted)
            _round(soak, fault, report, time.monotonic() - began)
            first = first or soak.largest()  # not before they have served
        report.gained = soak.largest() - first
        if not report.promises_broken():
            try:
                exact(soak.ports, soak.backends, soak.balancers[0])
            except AssertionError as exc:
                report.broken.append(f"turns are not exact any more: {exc}")
        if report.promises_broken():
            print(system.report())
    return report


def _round(soak: Soak, fault: Fault, report: Report, at: float) -> None:
    """One fault under a load of its own, so that what is kept of that is bounded."""
    about = str(fault.__doc__)
    report.faults += 1
    crowds = [Crowd([port], 4, 2) for port in soak.ports]
    soak.excuse = None
    known = len(report.failed)
    try:
        with ExitStack() as load:
            for crowd in crowds:
                load.enter_context(crowd.running())
                crowd.more(20)
            fault()
            eventually(soak.settled, "the system to be as before", 90)
            early = [crowd.failures for crowd in crowds]
            for crowd in crowds:
                crowd.more(20)
        for crowd, port, before in zip(crowds, soak.ports, early, strict=True):
            late = (Counter(crowd.failures) - Counter(before)).elements()
            report.count(before, list(late), crowd.clients, soak.excused(port))
        report.failed[known:] = [f"{about}: {failure}" for failure in report.failed[known:]]
        soak.balancers[0].idle()
    except AssertionError as exc:
        report.broken.append(f"{about}: {exc}")
        with contextlib.suppress(LbError):
            report.in_flight = soak.view.in_flight()
    report.requests += sum(crowd.done for crowd in crowds)
    figures = "; ".join(crowd.figures() for crowd in crowds)
    print(f"{int(at) // 60:3}:{int(at) % 60:02}  {about:60}  {figures}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="make soak SOAK_ARGS=", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="what to begin chance with, to do it again")
    found = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if found.seed is None else found.seed
    print(f"seed {seed}", flush=True)
    report = run(found.minutes * 60, seed)
    print(report.line())
    for promise in report.promises_broken():
        print(f"broken: {promise}")
    return 1 if report.promises_broken() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
