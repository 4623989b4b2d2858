"""Three kinds of client of a balancer in front of demo backends (`python -m lb.demo`).

    locust -f loadtest/locustfile.py --headless -u 200 -r 200 -t 30s --stop-timeout 30 --host http://…

* `Reader` keeps its connection alive and asks for small answers, and now and then for a
  larger one;
* `Uploader` keeps its connection alive and sends bodies of up to 1 MiB, every fourth in
  chunks without a length; the backend's answer must carry the right length and hash;
* `Caller` makes a new connection for each request.

A client that gets a wrong answer counts a failure, not only one that gets none. With
`--stop-timeout` every request that was begun is also finished, which the count of
requests per backend needs to be exact. Where `LB_LOADTEST_SUMMARY` names a file, the
result is written there as JSON when Locust ends; see `summary`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from locust import FastHttpUser, between, events, task
from locust.env import Environment

MIB = 1024 * 1024
BLOCK = os.urandom(2 * MIB)
"""Bodies are slices of this: random, so that no byte can be lost or doubled unnoticed."""

CHUNK = 48 * 1024
TIMEOUT = 60.0


def body() -> bytes:
    """A slice of `BLOCK`, its length from 1 byte to 1 MiB: all magnitudes are as frequent."""
    length = min(MIB, int(2 ** random.uniform(0, 20.2)))
    start = random.randrange(len(BLOCK) - length)
    return BLOCK[start : start + length]


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces: what has no length is sent with `Transfer-Encoding: chunked`."""
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


class Client(FastHttpUser):
    """What the kinds have in common: timeouts, no silent second try, and the check of an answer."""

    abstract = True
    connection_timeout = TIMEOUT
    network_timeout = TIMEOUT
    max_retries = 0

    def exchange(self, name: str, method: str, path: str, expected: dict[str, Any], **options: Any) -> None:
        """Send one request; it fails unless the JSON of the answer has all that is `expected`."""
        with self.client.request(method, path, name=name, catch_response=True, **options) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}: {answer.error or (answer.text or '')[:80]}")
                return
            try:
                told = json.loads(answer.text or "")
            except ValueError:
                answer.failure("an answer that is no JSON")
                return
            wrong = [key for key, value in expected.items() if told.get(key) != value]
            if wrong:
                answer.failure(f"an answer with a wrong {', '.join(wrong)}")


class Reader(Client):
    """Reads over one kept-alive connection."""

    weight = 6
    wait_time = between(0.05, 0.25)

    @task(9)
    def read(self) -> None:
        path = f"/item/{random.randrange(1000)}"
        self.exchange("read", "GET", path, {"method": "GET", "path": path})

    @task(1)
    def read_much(self) -> None:
        size = random.randrange(1, MIB)
        name = "read up to 1 MiB"
        with self.client.get(f"/bytes?n={size}", name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}: {answer.error or ''}")
            elif len(answer.content or b"") != size:
                answer.failure("a body of the wrong length")


class Uploader(Client):
    """Uploads over one kept-alive connection."""

    weight = 1
    wait_time = between(0.1, 0.5)

    @task(3)
    def upload(self) -> None:
        data = body()
        self.exchange("upload up to 1 MiB", "POST", "/upload", self.expected(data), data=data)

    @task(1)
    def upload_chunked(self) -> None:
        data = body()
        self.exchange("upload chunked", "PUT", "/upload", self.expected(data), data=chunks(data))

    @staticmethod
    def expected(data: bytes) -> dict[str, Any]:
        return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Caller(Client):
    """Connects anew for every request."""

    weight = 3
    wait_time = between(0.1, 0.4)

    @task
    def call(self) -> None:
        expected = {"method": "GET", "path": "/call"}
        self.exchange("connect and read", "GET", "/call", expected, headers={"Connection": "close"})


def summary(environment: Environment) -> dict[str, Any]:
    """The result as plain data: times in milliseconds, failures with their texts and counts."""
    stats = environment.stats
    return {
        "kinds": [
            {
                "name": entry.name,
                "requests": entry.num_requests,
                "failures": entry.num_failures,
                "rate": entry.total_rps,
                "p50": entry.get_response_time_percentile(0.50),
                "p95": entry.get_response_time_percentile(0.95),
                "p99": entry.get_response_time_percentile(0.99),
                "max": entry.max_response_time,
            }
            for entry in sorted(stats.entries.values(), key=lambda entry: str(entry.name))
        ],
        "errors": [
            {"kind": error.name, "error": str(error.error), "count": error.occurrences}
            for error in stats.errors.values()
        ],
    }


def write_summary(environment: Environment, **_: Any) -> None:
    """Leave the result where the program that started Locust looks for it."""
    if target := os.environ.get("LB_LOADTEST_SUMMARY"):
        Path(target).write_text(json.dumps(summary(environment)))


events.quitting.add_listener(write_summary)  # type: ignore[no-untyped-call]
