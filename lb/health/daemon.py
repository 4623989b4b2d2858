"""The daemon as a process: its greenlets, its signals, its end."""

from __future__ import annotations

import math
import os
import resource
import secrets
import signal
import socket
from collections.abc import Mapping
from time import monotonic

import gevent
from gevent.event import Event

from lb import __version__
from lb.errors import LbError
from lb.health.engine import Engine
from lb.health.keeper import Keeper
from lb.health.policy import Overrides
from lb.health.probe import pools_tls
from lb.health.report import Log
from lb.settings import PoolConfig
from lb.state.registry import Registry
from lb.state.store import address, connect, wait_for_store

#: File descriptors beside those of the probes: the store, name look-ups, the log, the event loop.
SPARE_FILES = 128
#: Longest time the end may take, seconds; the lease lapses by itself.
FAREWELL = 2.0


def allow_files(concurrency: int, log: Log) -> int:
    """Raise the limit of open files for `concurrency` probes; return how many it allows at a time."""
    wanted = concurrency + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return concurrency
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit == wanted:
        return concurrency
    allowed = max(limit - SPARE_FILES, 1)
    log("files", f"the limit of open files allows {allowed} probes at a time, not {concurrency}", "warning")
    return allowed


def run(
    url: str,
    must_be_there: bool,
    pools: Mapping[str, PoolConfig],
    overrides: Overrides,
    concurrency: int,
    log: Log,
) -> int:
    """Probe until told to stop; return the exit status.

    With `must_be_there` the end comes at once, with status 1, when the store at `url` does not serve;
    without it the daemon waits for it. `pools` are those of the configuration: their TLS settings hold for
    probes. Raises ConfigError when those cannot be used.
    """
    tls = pools_tls(pools)
    stopped, wake = Event(), Event()

    def on_signal() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()
        wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, on_signal)

    coming = gevent.spawn(_await_store, url, must_be_there, log)
    coming.link(lambda _: wake.set())
    wake.wait()
    if stopped.is_set():
        return 0
    if not coming.get():
        return 1
    wake.clear()

    def open_registry() -> Registry:
        return Registry(connect(url, client_name="lb-health"))

    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    keeper = Keeper(open_registry, owner, overrides, log)
    keeper.engine = Engine(keeper.may_probe, keeper.notice, log, allow_files(concurrency, log), tls)
    log(
        "start",
        f"version {__version__}, interval {overrides.interval:g} s, store at {address(url)}",
        owner=owner,
        interval=overrides.interval,
    )
    loops = (gevent.spawn(keeper.engine.run), gevent.spawn(keeper.run))
    for loop in loops:
        loop.link(lambda _: wake.set())
    wake.wait()
    if not stopped.is_set():
        # Neither ends by itself. A daemon that does half of its work is worse than none: others take over.
        log("died", f"a loop has ended: {loops[0].exception or loops[1].exception!r}", "error")
        return 1
    loops[0].kill(block=False)
    keeper.stop()
    loops[1].join(FAREWELL)
    return 0


def _await_store(url: str, must_be_there: bool, log: Log) -> bool:
    """Wait for the store, or only look whether it is there. False, and a line in the log, if it is no use."""
    try:
        deadline = monotonic() if must_be_there else math.inf
        wait_for_store(url, deadline, lambda text: log("waiting", text)).close()
    except LbError as exc:
        log("store", str(exc), "error")
        return False
    return True
