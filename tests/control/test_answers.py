"""The two ways in which a pool is told have one shape."""

from __future__ import annotations

import msgspec

from lb.control.answers import PoolInfo, exact_pool, known_pool
from lb.state.registry import Registry


def test_both_views_agree_but_for_the_counts(registry: Registry) -> None:
    exact = exact_pool(registry.pool_status("web"))
    known = known_pool(registry.load("web"))
    assert (exact.exact, known.exact) == (True, False)
    blank = tuple(msgspec.structs.replace(one, in_flight=None, requests=None) for one in exact.backends)
    assert msgspec.structs.replace(exact, exact=False, queued=None, backends=blank) == known
    assert msgspec.json.decode(msgspec.json.encode(known), type=PoolInfo) == known
