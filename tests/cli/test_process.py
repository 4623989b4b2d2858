"""Children that do not outlive their parent, seen from outside: a parent that is killed."""

from __future__ import annotations

import signal
from pathlib import Path

from lb.process import children
from tests.support.run import alive, eventually, python

PARENT = """
import signal, subprocess, sys
from lb.process import adopt_orphans, child_setup
adopt_orphans()
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
inner = "from signal import *; print(int(SIGINT in pthread_sigmask(0, ())), flush=True); pause()"
child = subprocess.Popen(
    [sys.executable, "-c", inner],
    preexec_fn=child_setup(mask),
    start_new_session=True,
)
print(child.pid, flush=True)
signal.pause()
"""

ORPHAN = """
import subprocess, sys, time
from lb.process import adopt_orphans, children
adopt_orphans()
inner = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True, stdout=2).pid)"
pid = int(subprocess.run([sys.executable, "-c", inner], stdout=subprocess.PIPE, check=True).stdout)
assert pid in children(), (pid, children())
import os
os.kill(pid, 9)
assert os.waitpid(pid, 0)[0] == pid
"""


def test_a_child_goes_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = python(tmp_path, "parent", "-c", PARENT)
    try:
        parent.until(lambda: len(parent.out.split()) == 2, "both to start")
        # The child prints whether SIGINT is blocked in it: the mask it was given says no.
        assert "0" in parent.out.split()
        pid = max(int(word) for word in parent.out.split())
        assert alive(pid)
        parent.signal(signal.SIGKILL)
        parent.wait()
        eventually(lambda: not alive(pid), "the end of the child")
    finally:
        parent.process.kill()


def test_orphans_are_adopted(tmp_path: Path) -> None:
    process = python(tmp_path, "orphan", "-c", ORPHAN)
    assert process.wait() == 0, process.err


def test_children_of_this_process(tmp_path: Path) -> None:
    process = python(tmp_path, "child", "-c", "import signal; signal.pause()")
    assert process.pid in children()
    process.end()
    assert process.pid not in children()
