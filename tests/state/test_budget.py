"""The retry budget: a share of the fleet's recent requests, exact over all who ask."""

from __future__ import annotations

import threading
import time
from typing import cast

import redis

from lb.settings import RetrySettings
from lb.state.budget import REFUSED, WINDOW, Budget, Window
from lb.state.keys import PoolKeys
from lb.state.registry import Registry
from lb.state.store import connect
from tests.state.servers import Server
from tests.support.run import eventually

# The window, in virtual time.


def taken(window: Window, now: float, tries: int) -> int:
    return sum(window.take(now) for _ in range(tries))


def test_a_share_of_the_requests() -> None:
    window = Window(0.2, 0)
    assert not window.take(0)
    window.count(0, requests=100)
    assert taken(window, 5, 50) == 20
    window.count(5, requests=10)
    assert taken(window, 5.5, 50) == 2


def test_some_in_any_case() -> None:
    window = Window(0.2, 3)
    assert taken(window, 0, 100) == 3 * WINDOW
    assert taken(window, 9.99, 100) == 0
    assert taken(window, 10, 100) == 3 * WINDOW
    window.count(10, requests=200)  # the larger one counts, not the sum
    assert taken(window, 10, 100) == 40 - 3 * WINDOW


def test_what_is_old_does_not_count() -> None:
    window = Window(0.5, 0)
    window.count(0, requests=100)
    window.count(5, requests=10)
    assert taken(window, 9.9, 20) == 20
    assert taken(window, 10, 20) == 0  # 20 of the 10 × 0.5 that count now
    assert taken(window, 14.9, 20) == 0
    window.count(20, requests=10)
    assert taken(window, 20, 20) == 5
    assert len(window._slots) <= WINDOW


def test_it_holds_over_any_time() -> None:
    """Retries are a share of the requests whatever the load does, and nothing else grows."""
    window, requests, retries = Window(0.2, 0), 0, 0
    for step in range(2000):
        now = step / 7
        more = (step * 7919) % 41
        window.count(now, requests=more)
        requests += more
        retries += taken(window, now, more)  # everything fails
    assert 0.19 * requests <= retries <= 0.2 * requests
    assert len(window._slots) <= WINDOW


# The script.


KEYS = PoolKeys("p")


def ask(registry: Registry, requests: int = 0, share: float = 0.2, least: float = 0, tries: int = 1) -> int:
    scripts = registry.scripts
    found = scripts.retry(KEYS, requests, share, least, WINDOW, True)
    return found + sum(scripts.retry(KEYS, 0, share, least, WINDOW, True) for _ in range(tries - 1))


def test_the_script_counts_as_the_window_does(registry: Registry) -> None:
    assert ask(registry) == 0
    assert not registry.scripts.retry(KEYS, 100, 0.2, 0, WINDOW, False)
    assert ask(registry, tries=50) == 20
    assert ask(registry, requests=10, tries=50) == 2
    assert ask(registry, least=3, tries=50) == 8


def test_the_key_is_forgotten(registry: Registry, client: redis.Redis) -> None:
    ask(registry, requests=1)
    # Not before what is in it has stopped to count; some seconds may pass until this looks.
    assert WINDOW - 3 <= client.ttl(KEYS.retries) <= WINDOW + 1


def test_seconds_that_are_over_are_dropped(registry: Registry, client: redis.Redis) -> None:
    now = int(registry.now())
    old = {f"{kind}{now - WINDOW - back}".encode() for kind in "nr" for back in range(5)}
    for name in old:
        client.hset(KEYS.retries, name, "50")
    client.hset(KEYS.retries, f"n{now - WINDOW + 3}", "100")
    assert ask(registry, tries=50) == 20
    assert not old.intersection(cast("list[bytes]", client.hkeys(KEYS.retries)))


def test_many_who_ask_at_once_take_no_more(shared_server: Server, client: redis.Redis) -> None:
    """Each through a connection of its own, as workers do."""
    Registry(client).scripts.retry(KEYS, 500, 0.2, 0, WINDOW, False)
    found: list[int] = []

    def run() -> None:
        with connect(shared_server.url) as own:
            found.append(ask(Registry(own), tries=50))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert sum(found) == 100


# A worker's part.


SETTINGS = RetrySettings(budget=0.2, budget_min=0)


def test_workers_share_one_budget(registry: Registry) -> None:
    first, second = (Budget("p", SETTINGS, lambda: registry) for _ in range(2))
    first.tell(registry, 100)
    assert sum(second.take(0) for _ in range(15)) == 15
    assert sum(first.take(100) for _ in range(15)) == 5
    assert first.refused == 10


def test_what_was_not_told_yet_counts(registry: Registry) -> None:
    budget = Budget("p", SETTINGS, lambda: registry)
    assert sum(budget.take(50) for _ in range(20)) == 10
    budget.tell(registry, 50)  # it was told
    assert ask(registry) == 0


def test_idle_workers_call_nobody(registry: Registry, client: redis.Redis) -> None:
    budget = Budget("p", SETTINGS, lambda: registry)
    for requests in (0, 7):
        budget.tell(registry, requests)
        client.config_resetstat()
        budget.tell(registry, requests)
        assert "cmdstat_evalsha" not in client.info("commandstats")


def test_a_refusal_holds_for_a_moment(registry: Registry, client: redis.Redis) -> None:
    budget = Budget("p", SETTINGS, lambda: registry)
    assert not budget.take(0)
    refused = time.monotonic()
    client.config_resetstat()
    while time.monotonic() < refused + REFUSED / 2:
        assert not budget.take(0)
    stats = client.info("commandstats")
    # None, unless this thread stood still between the two looks at the clock.
    assert stats.get("cmdstat_evalsha", {}).get("calls", 0) <= 1
    Registry(client).scripts.retry(KEYS, 100, 0.2, 0, WINDOW, False)
    eventually(lambda: budget.take(0), "it to ask again")


def test_without_the_store_each_worker_has_its_own() -> None:
    budget = Budget("p", SETTINGS, lambda: None)
    assert sum(budget.take(100) for _ in range(30)) == 20


def test_what_the_store_has_granted_counts_when_it_is_gone(registry: Registry) -> None:
    away: list[Registry | None] = [registry]
    budget = Budget("p", SETTINGS, lambda: away[0])
    assert sum(budget.take(100) for _ in range(20)) == 20
    away[0] = None
    assert not budget.take(100)


def test_a_store_that_was_told_in_vain_is_not_asked(own_server: Server) -> None:
    asked: list[int] = []
    with connect(own_server.url) as client:
        own_server.stop()
        budget = Budget("p", SETTINGS, lambda: asked.append(1))
        budget.tell(Registry(client), 100)
        assert budget.take(100)
    assert asked == []


def test_a_store_that_fails_is_left_alone(own_server: Server) -> None:
    calls = []

    def registry() -> Registry:
        calls.append(1)
        return Registry(client)

    with connect(own_server.url) as client:
        own_server.stop()
        budget = Budget("p", SETTINGS, registry)
        assert sum(budget.take(100) for _ in range(20)) == 20
        budget.tell(Registry(client), 200)  # raises nothing
    assert len(calls) <= 2  # it is asked again after a second
