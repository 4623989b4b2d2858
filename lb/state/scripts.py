"""The Lua scripts of `redis/`: loading them, and one typed call for each.

What a script does, and why it must be one step, stands in its header. Answers that mean "no" become
errors here, so that nobody else needs to know the codes. The hot one, `claim`, is called by
`lb.state.claims` on a connection of its own; its source and digest are `CLAIM_SOURCE`, `CLAIM_SHA`. So are
`explain` and `probe`, which are `claim` for one request, and `outlier`, which is `claim` for none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple, cast

import redis
from redis.exceptions import NoScriptError

from lb.errors import StoreConflict, StoreError, StoreUnavailable
from lb.state.keys import PoolKeys

_INCLUDE = re.compile(r"^-- @include (\w+)\n", re.MULTILINE)

Argument = bytes | str | int | float


class LeaseLost(StoreError):
    """The worker's lease is gone or was opened anew; open one with what is still held."""


def _directory() -> Traversable:
    """Where the scripts are: inside the package when installed, in `redis/` of a checkout."""
    packaged = files("lb.state") / "lua"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[2] / "redis"


@cache
def source(name: str) -> str:
    """The text of script `name`, its includes put in place. Raises FileNotFoundError."""
    text = (_directory() / f"{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: source(match[1]), text)


class Script(NamedTuple):
    """A script's text, and the digest under which a server knows it."""

    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read script `name`. The digest is SHA-1, as the protocol asks."""
        text = source(name)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


CLAIM_SOURCE, CLAIM_SHA = Script.load("claim")
EXPLAIN_SOURCE, EXPLAIN_SHA = Script.load("explain")
OUTLIER_SOURCE, OUTLIER_SHA = Script.load("outlier")
PROBE_SOURCE, PROBE_SHA = Script.load("probe")
LINKED = (CLAIM_SOURCE, EXPLAIN_SOURCE, OUTLIER_SOURCE, PROBE_SOURCE)
"""What is called on the connections for claims, see `linked`."""
COMMIT, LEASE, BEAT, REAP, HOLD, REPORT, DECISIONS, RETRY, ONCE = map(
    Script.load, ("commit", "lease", "beat", "reap", "hold", "report", "decisions", "retry", "once")
)


OTHER_ZONES = -2
"""What scripts answer that were called with the orders of other zones than there are."""

TRIES = 10
"""Calls of such a script: zones change with the membership, and not every time."""


def linked(client: redis.Redis, **options: float) -> Any:
    """A connection of its own for claims, made as those of `client` save for the `options`, to a server that
    has been taught what is called on it. Raises StoreUnavailable.
    """
    pool = client.connection_pool
    connection = pool.connection_class(**{**pool.connection_kwargs, **options})
    try:
        connection.connect()
        for script in LINKED:
            connection.send_command("SCRIPT", "LOAD", script)
            connection.read_response()
    except (redis.RedisError, OSError) as exc:
        connection.disconnect()
        raise StoreUnavailable(str(exc)) from None
    return connection


class Put(NamedTuple):
    """A backend as `commit` writes it. `record` is its JSON; `available`: is it eligible, and `standby`: may
    a request have it that all others have failed; `home`: among the zones (see `lb.algorithms.eligible`)?
    """

    id: str
    record: bytes
    available: bool
    weight: int
    max_connections: int
    standby: bool = False
    home: str = ""


class Scripts:
    """The rare scripts over one client. Raises what the client raises, besides what each method says."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        #: The zones of pools, as far as they are known here: where there are none, nobody needs to ask.
        self._zones: dict[str, tuple[str, ...]] = {}

    def _run(self, script: Script, keys: tuple[str, ...], arguments: Iterable[Argument]) -> int:
        values = (*keys, *arguments)
        try:
            answer = self.client.evalsha(script.sha, len(keys), *values)
        except NoScriptError:
            # A server that was restarted or failed over knows no scripts; EVAL teaches it.
            answer = self.client.eval(script.text, len(keys), *values)
        return cast("int", answer)

    def _run_zoned(
        self,
        script: Script,
        keys: PoolKeys,
        first: tuple[str, ...],
        before: Iterable[Argument],
        after: Iterable[Argument] = (),
    ) -> int:
        """Run a script that needs the orders of all zones: their keys stand behind `first`, their names
        between the arguments. Raises StoreConflict when others change them all the time.
        """
        before, after = tuple(before), tuple(after)
        for _ in range(TRIES):
            zones = self._zones.get(keys.pool, ())
            answer = self._run(script, (*first, *keys.zones(zones)), (*before, "\n".join(zones), *after))
            if answer != OTHER_ZONES:
                return answer
            found = cast("bytes | None", self.client.hget(keys.state, "_z"))
            self._zones[keys.pool] = tuple(found.decode().split("\n")) if found else ()
        raise StoreConflict(f"the zones of pool {keys.pool} were changed by others {TRIES} times in a row")

    def commit(
        self,
        keys: PoolKeys,
        expected: int,
        message: bytes,
        put: Iterable[Put] = (),
        delete: Iterable[str] = (),
        *,
        settings: bytes = b"",
        order: str = "",
        canary: str = "",
        slow_start: float = 0.0,
        begins: bool = False,
        was: Iterable[str] = (),
        zones: Iterable[str] = (),
    ) -> int:
        """Write a change over version `expected`; return the new version.

        `settings`, `order` and `canary` (the kinds of order that are kept; "-": no canary) stay as they are
        when empty. `slow_start`: seconds in which backends that begin to serve get up to their share; not
        when the pool `begins`: nobody has served so far. `was` and `zones`: the zones that backends of the
        pool are in at version `expected`, and will be. Raises StoreConflict when the pool is at another
        version.
        """
        slow: Argument = "" if slow_start <= 0 else "-" if begins else slow_start
        zones = sorted(set(zones))
        given = sorted({*was, *zones})
        arguments: list[Argument] = [expected, settings, order, message, canary, slow]
        arguments += ("\n".join(zones), "\n".join(given))
        for one in put:
            serves = 1 if one.available else 2 if one.standby else 0
            arguments += ("put", one.id, one.record, serves, one.weight, one.max_connections)
            arguments.append(one.home)
        for backend in delete:
            arguments += ("del", backend)
        answer = self._run(
            COMMIT,
            (keys.state, keys.members, keys.order, keys.changes, keys.canary, *keys.zones(given)),
            arguments,
        )
        if answer < 0:
            raise StoreConflict(f"pool {keys.pool} is at version {-1 - answer}, not at {expected}")
        return answer

    def lease(self, keys: PoolKeys, worker: str, epoch: str, held: Mapping[str, int]) -> int:
        """Open a lease that holds exactly `held` (backend id → connections); return the version."""
        if not epoch:
            raise ValueError("an epoch must not be empty")
        pairs = [part for pair in held.items() for part in pair]
        return self._run_zoned(LEASE, keys, _lease_keys(keys, worker), (worker, epoch), pairs)

    def close(self, keys: PoolKeys, worker: str) -> None:
        """Give everything back that `worker` holds, and forget it."""
        self._run_zoned(LEASE, keys, _lease_keys(keys, worker), (worker, ""))

    def beat(self, keys: PoolKeys, worker: str, epoch: str) -> int:
        """Show a sign of life; return the pool's version. Raises LeaseLost."""
        answer = self._run(BEAT, (keys.state, keys.workers, keys.lease(worker), keys.canary), (worker, epoch))
        if answer < 0:
            raise LeaseLost(f"the lease of {worker} in pool {keys.pool} is gone")
        return answer

    def reap(self, keys: PoolKeys, worker: str, lease: float) -> int | None:
        """Give back what `worker` held if its last sign of life is `lease` seconds old.

        Returns the number of connections given back; None when the worker is alive.
        """
        answer = self._run_zoned(REAP, keys, _lease_keys(keys, worker), (worker, lease))
        return None if answer < 0 else answer

    def report(
        self, keys: PoolKeys, backend: str, free: float, lasts: float, fade: float, blackout: float
    ) -> float | None:
        """Take a report: `free` is the share of its weight `backend` can bear, 0.01 to 1. Times: seconds.

        Returns the share smoothed over former reports; None when there is no such backend.
        """
        answer = self._run_zoned(
            REPORT, keys, (keys.state, keys.order, keys.canary), (backend, free, lasts, fade, blackout)
        )
        return None if answer < 0 else answer / 1e6

    def keep_decisions(
        self, keys: PoolKeys, found: Iterable[tuple[str, bytes]], seconds: float, most: int
    ) -> int:
        """Keep `found` (request id, JSON) for so many seconds, and of all `most` at most; return how many
        there are.
        """
        pairs = [part for pair in found for part in pair]
        return self._run(DECISIONS, (keys.decisions, keys.decided), (seconds, most, *pairs))

    def retry(
        self, keys: PoolKeys, requests: int, share: float, least: float, window: int, wanted: bool
    ) -> bool:
        """Count `requests` more, and take one retry if it is `wanted` and there is one; was it taken?

        Of the last `window` seconds there may be `share` of the requests, and `least` a second in any case.
        """
        return self._run(RETRY, (keys.retries,), (requests, share, least, window, int(wanted))) == 1

    def once(
        self,
        keys: PoolKeys,
        what: str,
        key: str,
        print_: bytes,
        worker: str,
        number: str,
        lease: float,
        keep: float,
        most: int,
        answer: bytes = b"",
    ) -> int | bytes:
        """Begin, finish or release a request that is carried out once; returns what the script says."""
        names = (keys.once, keys.once_until, keys.workers)
        values = (what, key, print_, worker, number, lease, keep, most, answer)
        return cast("int | bytes", self._run(ONCE, names, values))

    def hold(self, key: str, owner: str, milliseconds: int) -> bool:
        """Take or renew the lock `key` for `milliseconds`, or (0) let go of it. True if done.

        A lock held by another owner is left as it is.
        """
        return self._run(HOLD, (key,), (owner, milliseconds)) == 1


def _lease_keys(keys: PoolKeys, worker: str) -> tuple[str, ...]:
    return keys.state, keys.order, keys.workers, keys.lease(worker), keys.canary, keys.queue
