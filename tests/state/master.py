"""A gunicorn master as the embedded store sees one.

`python -m tests.state.master DIRECTORY WORKERS [patched]` starts or joins, forks workers, prints its own
process id, the store's and those of the workers, and leaves when its standard input ends. As gunicorn does,
it collects every child by itself. A worker whose master dies leaves in its place, and writes what came of
it to DIRECTORY/left.PID.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(directory: Path, workers: int, patched: bool) -> None:
    if patched:
        from gevent.monkey import patch_all

        patch_all()
    from time import sleep

    from lb.state.embedded import start_or_join

    reaped: list[int] = []

    def collect(*_: object) -> None:
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            reaped.append(pid)

    signal.signal(signal.SIGCHLD, collect)
    store = start_or_join(directory)
    parent, children = os.getpid(), []
    for _ in range(workers):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            while os.getppid() == parent:
                sleep(0.01)
            assert not store.leave()  # that is for the master
            stopped = store.leave_if_orphaned()
            directory.joinpath(f"left.{os.getpid()}").write_text(str(stopped))
            os._exit(0)
        children.append(pid)
    print(parent, store.pid(), *children, flush=True)
    sys.stdin.read()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    while not set(children) <= set(reaped):
        sleep(0.01)
    print(store.leave(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "patched" in sys.argv[3:])
