"""USR2 under load: two masters side by side, then one of them goes; no request fails, and the store stays."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest

from tests.faults.test_reload import KINDS, loads
from tests.support.clients import get
from tests.support.processes import System, refuses
from tests.support.run import alive, descendants, eventually


@pytest.mark.parametrize("worker", KINDS)
def test_the_old_master_goes(system: System, worker: str) -> None:
    backends = [system.plain_backend() for _ in range(2)]
    balancer = system.balancer(backends=",".join(one.url for one in backends), workers=2, worker=worker)
    store, old = balancer.store_pid, balancer.worker_pids
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        kept.more(100)
        new = balancer.upgrade()
        fresh.more(100)
        balancer.send(signal.SIGTERM)
        while any(map(alive, old)):
            assert get(balancer.control, "/readyz").status == 200  # the new one speaks for both
        assert balancer.process.wait() == 0
        kept.more(100)
        fresh.more(100)
        assert alive(store)
        assert balancer.store_pid == store
    assert kept.failures == fresh.failures == []
    balancer.idle()
    eventually(lambda: balancer.view.workers() == 2, "the old ones' leases to be gone")
    counts = balancer.view.counts()
    assert max(counts.values()) - min(counts.values()) <= 1
    # What was the old one's is the new one's: a reload, and in the end the store.
    before = descendants(new)
    os.kill(new, signal.SIGHUP)
    eventually(lambda: not before & descendants(new), "the reload")
    assert get(balancer.port).status == 200
    balancer.stop_successor()
    assert refuses(balancer.port)
    eventually(lambda: not alive(store), "the store to end")


def test_a_new_master_that_does_not_start_changes_nothing(system: System) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(config=f'[pools.default]\nbackends = [{{url = "{backend.url}"}}]')
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        balancer.config_path.write_text("[pools.default")
        balancer.send(signal.SIGUSR2)
        eventually(lambda: "is not TOML" in balancer.process.err, "the fault to be said")
        kept.more(100)
        fresh.more(100)
    assert kept.failures == fresh.failures == []
    assert balancer.stop() == 0


def test_the_new_master_goes(system: System) -> None:
    """An upgrade that is taken back: the old workers were sent away (WINCH), and are wanted again."""
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, workers=2)
    store, old = balancer.store_pid, balancer.worker_pids
    with ExitStack() as stack:
        kept, fresh = loads(stack, balancer)
        new = balancer.upgrade()
        balancer.send(signal.SIGWINCH)
        eventually(lambda: not any(map(alive, old)), "the old workers to go")
        kept.more(100)
        fresh.more(100)
        balancer.send(signal.SIGHUP)
        eventually(lambda: balancer.view.workers() == 4, "them to be replaced")
        family = descendants(new)
        os.kill(new, signal.SIGTERM)
        while any(map(alive, family)):
            assert get(balancer.control, "/readyz").status == 200
        eventually(lambda: not alive(new), "the new master to end")
        balancer.successor = None
        kept.more(100)
        fresh.more(100)
    assert kept.failures == fresh.failures == []
    assert alive(store)
    assert balancer.stop() == 0
    assert not alive(store)
