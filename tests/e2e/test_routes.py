"""What a route changes on the way, and whose word about a client counts."""

from __future__ import annotations

import pytest

from tests.support.backends import Backend, ok, once, serve
from tests.support.clients import Client, request
from tests.support.processes import System

CONFIG = """
trusted_proxies = ["127.0.0.1"]
forwarded = true

[pools.default]
backends = [{{url = "{url}"}}]

[pools.named]
backends = [{{url = "{url}"}}]
host = "backend"

[pools.literal]
backends = [{{url = "{url}"}}]
host = "inside.example"

[[routes]]
pool = "default"

[[routes]]
pool = "named"
path = "/api"
strip_prefix = true
request.set = {{ X-Client = "{{client_ip}} {{path}}" }}
request.remove = ["Cookie"]
response.set = {{ X-Powered-By = "lb" }}
response.add = {{ X-Extra = "{{host}}" }}
response.remove = ["X-Secret"]

[[routes]]
pool = "literal"
path = "/literal"

[[routes]]
host = "secure.example"
redirect = "https"
"""


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_routes(system: System, worker: str) -> None:
    with Backend(serve()) as backend:
        balancer = system.balancer(config=CONFIG.format(url=backend.url), worker=worker)
        address = backend.url.removeprefix("http://")

        with Client(balancer.port) as client:
            backend.script = once(ok(b"x", "X-Powered-By: it", "X-Secret: 1", "X-Kept: 1"))
            answer = client.call(
                "GET", "/api/a%2Fb//c?d=/api", None, "Cookie: a=b", "X-Forwarded-For: 192.0.2.9"
            )
            assert (answer.status, answer.body) == (200, b"x")
            assert answer.values("X-Powered-By") == ["lb"]
            assert answer.values("X-Extra") == ["t.example"]
            assert answer.values("X-Kept") == ["1"]
            assert answer.values("X-Secret") == []
        seen = backend.requests[-1]
        assert seen.target == "/a%2Fb//c?d=/api"
        assert seen.values("Host") == [address]
        assert seen.values("X-Forwarded-Host") == ["t.example"]
        assert seen.values("X-Client") == ["192.0.2.9 /api/a%2Fb//c"]
        assert seen.values("Cookie") == []
        assert seen.values("X-Forwarded-For") == ["192.0.2.9, 127.0.0.1"]
        assert len(seen.values("Forwarded")) == 1

        backend.script = serve()
        with Client(balancer.port) as client:
            assert client.call("GET", "/literal", None, "X-Request-Id: mine-1").status == 200
        assert backend.requests[-1].values("Host") == ["inside.example"]
        assert backend.requests[-1].values("X-Request-Id") == ["mine-1"]

        with Client(balancer.port) as client:
            client.send(request("POST", "/a?b=c", "Content-Length: 0", host="secure.example:8000"))
            answer = client.read_answer()
            assert answer.status == 308
            assert answer.values("Location") == ["https://secure.example/a?b=c"]
        with Client(balancer.port) as client:
            client.send(request("GET", "/", "X-Forwarded-Proto: https", host="secure.example"))
            assert client.read_answer().status == 404, "there is no pool behind it"
