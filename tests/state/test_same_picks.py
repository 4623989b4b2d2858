"""The scripts pick what the plain model of the shared state picks, claim by claim."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from lb.model import Backend
from tests.algorithms import model
from tests.state.pool import EPOCH, Pool, put

NAMES = ("a", "b", "c", "d:80", "e", "[::1]:80")


@pytest.mark.parametrize(
    "name", ["round-robin", "weighted-round-robin", "least-connections", "weighted-least-connections"]
)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_picks(pool: Pool, name: str, seed: int) -> None:
    chance = Random(seed)
    members: dict[str, Backend] = {}
    snapshot = model.pool(name)
    plain = model.Model(snapshot, chance.random)
    pool.commit(algorithm=name)
    pool.scripts.lease(pool.keys, "w", EPOCH, {})
    held: list[str] = []
    for step in range(300):
        what = chance.random()
        if step < 4 or what < 0.1:
            each = chance.choice(NAMES)
            if each in members and chance.random() < 0.3:
                del members[each]
                pool.commit(delete=[each])
            else:
                one = model.backend(each, chance.choice([0, 1, 1, 2, 5]), chance.choice([0, 0, 2]))
                members[each] = one
                pool.commit([put(each, one.weight, one.max_connections, one.available)])
            snapshot = msgspec.structs.replace(snapshot, backends=dict(members))
            plain.update(snapshot)
        elif what < 0.4 and held:
            back = held.pop(chance.randrange(len(held)))
            pool.release(back)
            plain.release(back)
        else:
            exclude = set(chance.sample(NAMES, 2)) if what > 0.9 else set()
            wanted = plain.claim(exclude=exclude)
            (taken,) = pool.call(1, exclude=[exclude] if exclude else [])[1]
            assert taken == wanted, f"step {step}"
            if taken:
                held.append(taken)
        counts = {each: count for each, count in plain.in_flight.items() if count}
        assert pool.in_flight() == counts
