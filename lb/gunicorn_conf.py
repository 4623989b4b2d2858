"""gunicorn's configuration, for `lb serve` and for the file `gunicorn.conf.py`.

What users set is in `lb.toml` and the environment (docs/settings.md); `hooks` ties gunicorn's life to it.
"""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lb import boot, master

if TYPE_CHECKING:
    from lb.vitals import Load


def on_starting(server: Any) -> None:
    """Before anything is bound."""
    master.take_over(server)
    boot.start_master(server.cfg, server.log.error_log)


def on_reload(server: Any) -> None:
    """HUP, after the configuration was read anew."""
    boot.use_log(server.log.error_log)
    boot.reload_master(server.cfg)


def on_exit(server: Any) -> None:
    """The master is about to end."""
    boot.stop_master()


def pre_fork(server: Any, worker: Any) -> None:
    """A worker is about to be forked."""
    master.give_place(server, worker)


def pre_exec(server: Any) -> None:
    """USR2: this process becomes the new master."""
    boot.board.pass_on(server.cfg.env_orig)


def post_fork(server: Any, worker: Any) -> None:
    """A new worker: a TERM that comes before it has handlers of its own waits until `post_worker_init`.

    Until then it has the master's, which put signals into a queue that nobody here reads; without this a
    stop right after a start or a reload would wait for the whole of graceful_timeout.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    boot.take_place(getattr(worker, "place", None))  # a hook of the user's own may stand in place of ours
    for other in server.leaving.values():  # gunicorn has closed those of the others
        other.tmp.close()
    while not server.SIG_QUEUE.empty():
        if server.SIG_QUEUE.get_nowait() == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)


def post_worker_init(worker: Any) -> None:
    """Worker classes with threads get their parts here; `lb.worker` makes its own in its loop."""
    from lb.worker import Worker

    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if isinstance(worker, Worker):
        return
    from lb import app
    from lb.admission import Admission
    from lb.overload import Resident
    from lb.state.threads import ThreadRuntime, flush_log_forever

    if (context := boot.tls()) is not None:
        context.set_alpn_protocols(["http/1.1"])
    service = boot.service(ThreadRuntime(), None)
    service.kinds_of([sock.getsockname() for sock in worker.sockets])
    gate = Admission(worker.wsgi, service)
    service.vitals.measure(lambda: _load(worker, gate.refused), Resident().read)
    app.install(service)
    service.start()
    worker.wsgi = gate
    gate.watch(worker)
    flush_log_forever(service.log.flush)
    master.say_ready(worker)  # it accepts in the next moment


def _load(worker: Any, refused: int) -> Load:
    """What gunicorn's worker with threads has to do: connections it waits for are in one of two queues."""
    from lb.vitals import Load

    waiting = len(worker.keepalived_conns) + len(worker.pending_conns)
    return Load(worker.nr_conns, max(worker.nr_conns - waiting, 0), refused)


def worker_exit(server: Any, worker: Any) -> None:
    """A worker leaves: under threads its parts are stopped here."""
    from lb import app

    app.uninstall()


def ssl_context(config: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """What gunicorn's own workers speak TLS with."""
    return boot.tls() or default()


def settings() -> dict[str, Any]:
    """All of it, for a configuration file to put into its globals; read anew at each call."""
    hooks = (
        *(on_starting, on_reload, on_exit, pre_fork, pre_exec, post_fork, post_worker_init, worker_exit),
        ssl_context,
    )
    return {**boot.gunicorn_settings(), **{hook.__name__: hook for hook in hooks}}


if __name__ == "__config__":  # run as a configuration file: `gunicorn -c …/lb/gunicorn_conf.py`
    globals().update(settings())
