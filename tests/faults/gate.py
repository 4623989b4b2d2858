"""Workers that start as slowly as a test wants, or not at all."""

from __future__ import annotations

from pathlib import Path

_CONF = """\
import time
from pathlib import Path

from lb import gunicorn_conf

globals().update(gunicorn_conf.settings())
{extra}
_hook = post_worker_init


def post_worker_init(worker):
    for _ in range(3000):
        if not Path({shut!r}).exists():
            break
        time.sleep(0.02)
    if Path({broken!r}).exists():
        raise RuntimeError("this worker does not start")
    _hook(worker)
"""


class Gate:
    """A configuration for gunicorn whose workers wait, before they serve, until a gate is open."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        """`extra`: lines that the master is to run, too."""
        self._shut, self._broken = folder / "gate.shut", folder / "gate.broken"
        conf = folder / "gate.conf.py"
        conf.write_text(_CONF.format(shut=str(self._shut), broken=str(self._broken), extra=extra))
        #: What gunicorn is to be given.
        self.options = ("-c", str(conf))

    def shut(self) -> None:
        """From now on workers wait."""
        self._shut.touch()

    def open(self) -> None:
        """They wait no longer."""
        self._shut.unlink()

    def breaks(self) -> None:
        """From now on workers fail to start."""
        self._broken.touch()

    def mend(self) -> None:
        """They do no longer."""
        self._broken.unlink()
