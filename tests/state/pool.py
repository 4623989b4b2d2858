"""A pool in a real store, driven through the scripts themselves."""

from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import redis

from lb.algorithms import algorithm as named
from lb.state.fleet import Fleet
from lb.state.keys import PoolKeys
from lb.state.scripts import CLAIM_SHA, CLAIM_SOURCE, Put, Scripts

EPOCH = "e"


class Record(NamedTuple):
    """What the state hash has of a backend."""

    in_flight: int
    requests: int
    weight: int
    cap: int
    saved: float


class LostError(Exception):
    """The lease is not at this epoch."""


def stop(*fleets: Fleet) -> None:
    """Stop fleets of this process, and wait for their threads: the next test has the same server."""
    for fleet in fleets:
        fleet.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("Fleet."):
            thread.join(10)
            assert not thread.is_alive()


class Pool:
    """One pool and the calls a test makes on it."""

    def __init__(self, client: redis.Redis, name: str = "p") -> None:
        self.client = client
        self.keys = PoolKeys(name)
        self.scripts = Scripts(client)
        #: The zones that its backends are in.
        self.zones: tuple[str, ...] = ()
        client.script_load(CLAIM_SOURCE)

    def commit(
        self,
        put: Iterable[Put] = (),
        delete: Iterable[str] = (),
        algorithm: str = "",
        settings: bytes = b"",
        canary: str = "",
        slow_start: float = 0.0,
        begins: bool = False,
        zones: Iterable[str] | None = None,
    ) -> int:
        """Commit on top of whatever version there is. `zones`: those there are from now on, if others."""
        was = self.zones
        self.zones = was if zones is None else tuple(sorted(zones))
        return self.scripts.commit(
            self.keys,
            self.version(),
            b"{}",
            put,
            delete,
            order=named(algorithm).order if algorithm else "",
            canary=canary if canary in ("", "-") else named(canary).order,
            settings=settings,
            slow_start=slow_start,
            begins=begins,
            was=was,
            zones=self.zones,
        )

    def make(self, algorithm: str, weights: Mapping[str, int] | Iterable[str], cap: int = 0) -> None:
        """Write a pool of available backends, and open the lease of worker "w"."""
        if not isinstance(weights, Mapping):
            weights = dict.fromkeys(weights, 1)
        self.commit([put(name, weight, cap) for name, weight in weights.items()], algorithm=algorithm)
        self.scripts.lease(self.keys, "w", EPOCH, {})

    def call(
        self,
        claims: int = 0,
        releases: Mapping[str, int] | Iterable[tuple[str, int | str]] = (),
        exclude: Sequence[Iterable[str]] = (),
        worker: str = "w",
        epoch: str = EPOCH,
        rules: Sequence[tuple[str, Iterable[str], Iterable[str]]] = (),
        canary: bool = False,
        zone: str = "",
        zones: Sequence[str] | None = None,
        whole: Mapping[str, int] | None = None,
    ) -> tuple[int, list[str | None]]:
        """Call `claim`: version and picks. `exclude`: one set for each of the last claims but those of
        `rules`, each a rule, candidates and who is excluded. A release may be `(name, "count mean longest")`.
        `zone`: from whose order they are served; `zones`: those that the worker knows of, if not all.
        `whole`: all that the worker holds after the releases.
        """
        zones = self.zones if zones is None else zones
        keys = self.keys.zones(zones)
        if whole is not None:
            epoch = "\t".join((epoch, *(f"{name}\t{count}" for name, count in whole.items()), ""))
        served = ("c" if canary else "") + (f"\t{zone}\t" + "\n".join(zones) if zones else "")
        pairs = list(releases.items() if isinstance(releases, Mapping) else releases)
        answer = self.client.evalsha(
            CLAIM_SHA,
            5 + len(keys),
            *(self.keys.state, self.keys.order, self.keys.lease(worker)),
            *(self.keys.canary, self.keys.queue, *keys),
            *(epoch, claims, len(pairs), served),
            *(part for pair in pairs for part in pair),
            *("\t\t" + "\n".join(names) for names in exclude),
            *(f"{kind}\t" + "\n".join(names) + "\t" + "\n".join(without) for kind, names, without in rules),
        )
        version, *picks = cast("list[int | bytes | None]", answer)
        if version == -1:
            assert not picks
            raise LostError
        assert isinstance(version, int)
        assert len(picks) == claims
        return version, [pick.decode() if isinstance(pick, bytes) else None for pick in picks]

    def claim(self, claims: int = 1, worker: str = "w", epoch: str = EPOCH) -> list[str]:
        """Claims that must all succeed."""
        picks = self.call(claims, worker=worker, epoch=epoch)[1]
        assert None not in picks
        return [pick for pick in picks if pick]

    def release(self, *names: str, worker: str = "w", epoch: str = EPOCH) -> None:
        """Give back one connection of each name."""
        self.call(0, [(name, 1) for name in names], worker=worker, epoch=epoch)

    # What the store has.

    def version(self) -> int:
        return int(cast("bytes | None", self.client.hget(self.keys.state, "_v")) or 0)

    def records(self) -> dict[str, Record]:
        state = cast("dict[bytes, bytes]", self.client.hgetall(self.keys.state))
        found = {}
        for name, value in state.items():
            if not name.startswith(b"_"):
                in_flight, requests, weight, cap, saved = struct.unpack("<5d", value)
                found[name.decode()] = Record(int(in_flight), int(requests), int(weight), int(cap), saved)
        return found

    def in_flight(self) -> dict[str, int]:
        """Backend → connections, of those that have any."""
        return {name: record.in_flight for name, record in self.records().items() if record.in_flight}

    def held(self, worker: str = "w") -> dict[str, int]:
        """What the lease of a worker holds, without zeros."""
        _, said, *entries = cast("list[bytes]", self.client.lrange(self.keys.lease(worker), 0, -1)) or (
            b"",
            b"",
        )
        words = [word for word in said.decode().split("\t") if word]
        held = Counter(dict(zip(words[::2], map(int, words[1::2]), strict=True)))
        for entry in entries:
            taken, returned = entry.decode().split("\n")
            held.update(filter(None, taken.split("\t")))
            held.subtract(filter(None, returned.split("\t")))
        return {name: count for name, count in held.items() if count}

    def order(self, zone: str = "", canary: bool = False) -> dict[str, float]:
        key = self.keys.canary if canary else self.keys.order
        key = self.keys.zones([zone])[canary] if zone else key
        pairs = cast("list[tuple[bytes, float]]", self.client.zrange(key, 0, -1, withscores=True))
        return {name.decode(): score for name, score in pairs}


def put(name: str, weight: int = 1, cap: int = 0, available: bool = True, zone: str = "") -> Put:
    """A backend as `commit` takes it."""
    serves = available and weight > 0
    home = zone if serves or not zone else f"-{zone}"
    return Put(name, b'{"id":"%s"}' % name.encode(), serves, weight, cap, home=home)
