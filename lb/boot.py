"""Starting up: what the gunicorn master does before it forks, and what each worker is put together from.

The master reads the configuration, starts (or joins) the embedded store where no other is configured,
and publishes the configured backends. Whatever is wrong by then is said in one line, and the exit code is 1;
at a reload the running configuration stays in force instead.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import resource
import socket
import ssl
import sys
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import gunicorn.sock

from lb import config
from lb.certificates import alpn, client_contexts, harden, load_chain, server_context
from lb.errors import ConfigError, LbError
from lb.scoreboard import Place, inherited
from lb.settings import Settings
from lb.state import embedded
from lb.state.decide import declare
from lb.state.registry import Registry
from lb.state.store import check_server, connect, runtime_dir, store_url

if TYPE_CHECKING:
    from lb.proxy.conn import Reactor
    from lb.service import Service
    from lb.state.fleet import Runtime

_LOG = logging.getLogger("lb")

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - gunicorn makes a file without a name in it

# Shared with the workers, which are forked from the process that made it: not 0 when all of them are to end.
_ending = mmap.mmap(-1, 1)

MEND_PAUSES = (1.0, 30.0)
"""Seconds until a second try to start a store that does not start; each time twice as many, up to these."""

#: Shared likewise, and with another master, at an upgrade.
board = inherited(os.environ)
_place: int | None = None

_settings: Settings | None = None
_store: embedded.EmbeddedStore | None = None
#: When (by `monotonic`) a store that did not start may be tried again, and the pause after that.
_mend_at = 0.0
_mend_pause = MEND_PAUSES[0]
#: As the settings have it, and as gunicorn's own flags do.
_tls: ssl.SSLContext | None = None
_flagged: ssl.SSLContext | None = None
#: How each pool speaks TLS to its backends.
_contexts: dict[str, ssl.SSLContext] = {}


def fail(message: object) -> NoReturn:
    """Say in one line what is wrong, and end with exit code 1."""
    print(f"lb: error: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def gunicorn_settings(env: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The gunicorn settings that follow from the configuration, read anew.

    gunicorn runs its configuration file at start and at each reload, and leaves without its workers
    when that raises: a configuration that cannot be read ends the start, but not a running balancer.
    """
    global _settings, _tls, _contexts
    try:
        loaded = config.load(env=env)
        made = server_context(loaded.tls), client_contexts(loaded.pools)
        _settings, (_tls, _contexts) = loaded, made
    except ConfigError as exc:
        if _settings is None:
            fail(exc)
        _LOG.error("reload: %s; the running configuration stays in force", exc)
    settings = _settings
    assert settings is not None
    return {
        "bind": [settings.bind, settings.control_bind],
        "workers": settings.workers or len(os.sched_getaffinity(0)),
        "worker_class": "lb.worker.Worker",
        # The heartbeats of the workers are touches of a file: kept in memory, no busy disk can stall them.
        "worker_tmp_dir": _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None,
        "graceful_timeout": int(settings.graceful_timeout + 0.999),
        "loglevel": settings.log.level,
        "threads": 16,
        # Its asyncio thread would be forked into the workers, and its socket left in the home folder.
        "control_socket_disable": True,
        # Which proxies may be believed is for this program to decide, under every worker class.
        "forwarded_allow_ips": "",
        # For gunicorn's own workers; `lb.worker` takes `tls()`.
        "certfile": settings.tls.certificate or None,
        "keyfile": settings.tls.key or None,
    }


def settings() -> Settings:
    """The configuration in force."""
    if _settings is None:
        gunicorn_settings()
    assert _settings is not None
    return _settings


def tls() -> ssl.SSLContext | None:
    """How the data listener speaks TLS; None: it does not. Made by the master, inherited by its workers."""
    return _flagged or _tls


def take_flags(cfg: Any) -> None:
    """Use gunicorn's own `certfile` and `keyfile` where they say something else. Raises ConfigError."""
    global _flagged
    own = settings().tls
    if (cfg.certfile or "", cfg.keyfile or "") == (own.certificate, own.key):
        _flagged = None
        return
    before, _flagged = _flagged, None
    try:
        certificate = cfg.certfile or ""
        load_chain(
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, cfg.keyfile or certificate, "gunicorn"
        )
        _flagged = harden(gunicorn.sock.ssl_context(cfg))
        _flagged.set_alpn_protocols(alpn(own))
    except (OSError, ValueError) as exc:
        _flagged = before
        raise ConfigError(f"gunicorn's TLS settings cannot be used: {exc}") from None
    except ConfigError:
        _flagged = before
        raise


def start_master(cfg: Any, log: logging.Logger) -> None:
    """What the master does before it binds: check the addresses, start the store, publish the backends."""
    global _store
    use_log(log)
    _name_pools()
    _raise_file_limit()
    try:
        take_flags(cfg)
        if not {"GUNICORN_FD", "LISTEN_FDS"} & os.environ.keys():
            for address in cfg.address:
                _check_free(address)
        if not settings().redis_url:
            _store = embedded.start_or_join(runtime_dir(settings().runtime_dir))
        publish()
    except LbError as exc:
        stop_master()
        fail(exc)


def reload_master(cfg: Any) -> None:
    """Publish what a reload has changed. The store's faults are logged: workers go on without."""
    _name_pools()
    try:
        take_flags(cfg)
    except ConfigError as exc:
        _LOG.error("reload: %s; the running certificate stays in force", exc)
    try:
        publish()
    except LbError as exc:
        _LOG.error("reload: the backends could not be published: %s", exc)


def announce_end() -> None:
    """The master will end, and nobody takes over: from now on its workers say so.

    A worker alone is also stopped for a new one to take its place, at a reload, and a whole master for
    another one that has its listeners (USR2); then nothing is said.
    """
    _ending[0] = 1


def announced() -> bool:
    """Has the master said that it will end?"""
    return _ending[0] != 0


def ending(parent: int) -> bool:
    """Do all workers of the master `parent` end, and nobody takes over?"""
    return announced() or os.getppid() != parent


def stop_master() -> None:
    """Leave the embedded store; the last one to leave stops it."""
    global _store
    store, _store = _store, None
    if store is not None:
        store.leave()


def mend_store() -> None:
    """For each turn of the master's loop: an embedded store that has died is started again, with its data."""
    global _mend_at, _mend_pause
    if _store is None or not _store.died() or monotonic() < _mend_at:
        return
    try:
        started = _store.ensure()
    except LbError as exc:
        _LOG.error("the embedded store has died and cannot be started again: %s", exc)
        _mend_at = monotonic() + _mend_pause
        _mend_pause = min(2 * _mend_pause, MEND_PAUSES[1])
    else:
        _mend_at, _mend_pause = 0.0, MEND_PAUSES[0]
        if started:
            _LOG.warning("the embedded store had died; it was started again, with its data")


def leave_if_orphaned(parent: int) -> None:
    """For a worker whose master (`parent`) died: nobody else would stop the embedded store."""
    if _store is not None and os.getppid() != parent:
        _store.leave_if_orphaned()


def take_place(number: int | None) -> None:
    """In a new worker: which place on the scoreboard it has."""
    global _place
    _place = number


def _name_pools() -> None:
    if left := board.name_pools(settings().pools):
        _LOG.warning("there is no room to count refused retries of more pools: %s", ", ".join(left))


def publish() -> None:
    """Write the configured pools into the shared state. Raises StoreError, ConfigError."""
    client = connect(store_url(settings().redis_url, settings().runtime_dir))
    try:
        check_server(client)
        registry = Registry(client)
        for name, pool in settings().pools.items():
            registry.change(name, declare(pool))
    finally:
        client.close()


def service(runtime: Runtime, reactor: Reactor | None) -> Service:
    """The parts of a worker process, not started yet."""
    # Imported here, in the worker: gevent must have patched ssl before requests and urllib3 refer to it.
    from lb.control import Control
    from lb.service import Service

    control = Control(settings())
    place = Place(board, _place)
    made = Service(settings(), runtime, reactor, control, _contexts, announced, place)
    control.service = made
    return made


def use_log(log: logging.Logger) -> None:
    """Let this program's log go where gunicorn's error log goes."""
    _LOG.handlers = log.handlers
    _LOG.setLevel(log.level)
    _LOG.propagate = False


def _raise_file_limit() -> None:
    """As many descriptors as the system lets us have: each connection needs one, its backend's another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check_free(address: Any) -> None:
    """Say at once, and once, that an address is taken: gunicorn itself tries five times over five seconds."""
    if not isinstance(address, tuple):
        return
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    shown = f"[{address[0]}]:{address[1]}" if family == socket.AF_INET6 else f"{address[0]}:{address[1]}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"{shown} is in use by another process; stop it, or choose another address "
                    "with LB_BIND or LB_CONTROL_BIND"
                ) from None
            raise ConfigError(f"cannot listen on {shown}: {exc.strerror}") from None
