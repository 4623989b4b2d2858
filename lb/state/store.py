"""The way to the store: its address, a client for it, and the one border where its errors are translated.

A client made by `connect` raises StoreUnavailable when the store cannot be reached, does not answer in time
or refuses to serve, and StoreError for anything else it refuses; nobody else needs redis-py's exceptions,
save NoScriptError for `lb.state.scripts`. Messages name the address without the password.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
from redis.retry import Retry

from lb.errors import ConfigError, StoreError, StoreUnavailable

SOCKET = "store.sock"
"""Name of the embedded store's socket in its runtime directory."""

OLDEST = (6, 2)
"""The first version of Redis that has every command in use; Valkey began above it."""

_SCHEMES = ("redis", "rediss", "unix")
_LATER = ("redis+sentinel", "redis+cluster")

_AUTH = (AuthenticationError, AuthorizationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)

# A server that answers so is up but does not serve. redis-py makes some of these classes, and leaves
# others as they came; what a script met, Redis 6.2 wraps: "ERR Error running script …: -OOM …".
_REFUSED = (*_AUTH, OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError)
_REFUSALS = re.compile(
    r"(?:^|-)(?:OOM|MISCONF|READONLY|BUSY|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|NOAUTH|NOPERM) "
)


def runtime_dir(configured: str | os.PathLike[str] | None = None) -> Path:
    """Where the embedded store of this user lives: as configured, or else private to the user.

    `$XDG_RUNTIME_DIR/lb` where the system has one, else `lb-<uid>` under the temporary directory.
    """
    if configured:
        return Path(configured).absolute()
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "lb"
    return Path(tempfile.gettempdir()) / f"lb-{os.getuid()}"


def store_url(settings_url: str | None, directory: str | os.PathLike[str] | None = None) -> str:
    """Return the URL of the store: the configured one, else that of the embedded store in `directory`."""
    return settings_url or f"unix://{quote(str(runtime_dir(directory) / SOCKET))}"


def is_embedded(url: str) -> bool:
    """Does `url` name an embedded store?"""
    parts = urlsplit(url)
    return parts.scheme == "unix" and Path(unquote(parts.path)).name == SOCKET


def address(url: str) -> str:
    """Return `url` without secrets, for messages."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    place = parts.netloc.rpartition("@")[2]
    query = urlencode([(key, "***" if "pass" in key else value) for key, value in parse_qsl(parts.query)])
    return f"{parts.scheme}://{place}{parts.path}{'?' if query else ''}{query}"


def translate(exc: Exception, where: str) -> Exception:
    """Return what to raise instead of `exc`, an error of redis-py or of a socket; `where` is the address."""
    if isinstance(exc, NoScriptError):
        return exc
    text = str(exc) or type(exc).__name__
    away = isinstance(exc, (redis.ConnectionError, redis.TimeoutError, OSError, *_REFUSED))
    if away or (isinstance(exc, redis.ResponseError) and _REFUSALS.search(text)):
        return StoreUnavailable(f"the store at {where} is not available: {text}")
    return StoreError(f"the store at {where} refused a command: {text}")


class _Pipeline(Pipeline):
    """A pipeline whose errors are translated."""

    where = ""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        try:
            return super().execute(raise_on_error)
        except (redis.RedisError, OSError) as exc:
            raise translate(exc, self.where) from exc


class _Client(redis.Redis):
    """A client whose errors are translated."""

    where = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError) as exc:
            raise translate(exc, self.where) from exc

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        made = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.where = self.where
        return made


def connect(
    url: str,
    *,
    socket_timeout: float = 2.0,
    connect_timeout: float = 2.0,
    client_name: str = "lb",
) -> redis.Redis:
    """Return a client for `url`; nothing is opened yet. Answers are bytes. Timeouts in seconds.

    Raises ConfigError for a URL that cannot be used.
    """
    scheme = urlsplit(url).scheme
    if scheme in _LATER:
        raise ConfigError(
            f"LB_REDIS_URL: {scheme}:// is not supported yet; name one server with redis://, rediss:// or unix://"
        )
    if scheme not in _SCHEMES:
        raise ConfigError(f"LB_REDIS_URL: {address(url)!r} must start with redis://, rediss:// or unix://")
    try:
        client = _Client.from_url(
            url,
            socket_timeout=socket_timeout,
            # One try: a script that was sent may have run, and most are no good to run twice.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name=client_name,
            **({} if scheme == "unix" else {"socket_connect_timeout": connect_timeout}),
        )
    except ValueError as exc:
        raise ConfigError(f"LB_REDIS_URL: {address(url)!r} cannot be used: {exc}") from None
    assert isinstance(client, _Client)
    client.where = address(url)
    return client


def check_server(client: redis.Redis) -> None:
    """Look whether the server will do: it lets us in, is new enough, one server, and can be written to.

    Raises ConfigError with what to do about it, and StoreUnavailable when there is no answer.
    """
    where = client.where if isinstance(client, _Client) else "this address"
    try:
        info = client.info()
    except StoreError as exc:
        _refuse_auth(exc, where)
        raise
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        raise ConfigError(
            f"the store at {where} is Redis {version}: 6.2 or newer is needed, or Valkey; "
            "or leave LB_REDIS_URL empty to use the embedded one"
        )
    if info.get("redis_mode") == "cluster":
        raise ConfigError(f"the store at {where} is a node of a cluster, which is not supported yet")
    if info.get("redis_mode") == "sentinel":
        raise ConfigError(f"the server at {where} is a sentinel: name the server it watches in LB_REDIS_URL")
    if info.get("role") == "slave":
        raise ConfigError(
            f"the store at {where} is a replica of {info.get('master_host')}:{info.get('master_port')}: "
            "name the primary in LB_REDIS_URL"
        )
    try:
        client.evalsha("0" * 40, 0)
    except NoScriptError:
        pass
    except StoreError as exc:
        _refuse_auth(exc, where)
        raise


def _refuse_auth(exc: StoreError, where: str) -> None:
    cause = exc.__cause__
    if isinstance(cause, _AUTH) or "NOAUTH" in str(cause):
        raise ConfigError(
            f"the store at {where} refuses us ({cause}): put user and password into LB_REDIS_URL, "
            "redis://USER:PASSWORD@HOST:PORT, and let the user run scripts"
        ) from None


def wait_for_store(url: str, deadline: float, say: Callable[[str], None], pause: float = 0.1) -> redis.Redis:
    """Wait until the store at `url` serves, and return a client for it.

    `deadline` is a time of the monotonic clock (`math.inf`: for ever), `say` is told what is waited for
    whenever the reason is a new one. Raises ConfigError for what waiting does not mend, and
    StoreUnavailable when the deadline has passed.
    """
    client = connect(url)
    where, said = address(url), ""
    while True:
        try:
            check_server(client)
        except StoreError as exc:
            if monotonic() >= deadline:
                client.close()
                _give_up(url, where, exc)
            if is_embedded(url):
                reason = f"waiting for the embedded store at {where}: start gunicorn, or set LB_REDIS_URL"
            else:
                reason = f"waiting for {exc}"
            if reason != said:
                said = reason
                say(reason)
            sleep(max(0.0, min(pause, deadline - monotonic())))
        except ConfigError:
            client.close()
            raise
        else:
            return client


def _give_up(url: str, where: str, exc: StoreError) -> NoReturn:
    if is_embedded(url):
        raise StoreUnavailable(
            f"there is no embedded store at {where}: start gunicorn, or set LB_REDIS_URL"
        ) from exc
    raise exc
