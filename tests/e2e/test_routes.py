"""What a route changes on the way, and whose word about a client counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.backends import Backend, Script, ok, once, serve
from tests.support.clients import Answer, Client, request
from tests.support.processes import System, own_system

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


SEVERAL = """
trusted_proxies = ["127.0.0.1"]

[[routes]]
pool = "any"

[[routes]]
pool = "admin"
path = "/admin"
request.set = { X-Route = "admin" }

[[routes]]
pool = "api"
path = "/api/"
request.set = { X-Route = "api" }

[[routes]]
pool = "deep"
path = "/api/v1/deep"

[[routes]]
pool = "spaced"
path = "/a%20b"

[[routes]]
pool = "named"
host = "www.example.com"

[[routes]]
pool = "under"
host = "*.example.com"

[[routes]]
pool = "deeper"
host = "*.sub.example.com"
path = "/x"

[[routes]]
pool = "six"
host = "[2001:db8::1]"

[[routes]]
pool = "stripped"
host = "strip.test"
path = "/app"
strip_prefix = true
response.set = { Location = "https://{host}{path}?{scheme}", Server = "lb" }
response.add = { Set-Cookie = "lb=1", X-Id = "{request_id}" }
response.remove = ["x-gone"]
request.add = { X-Many = "2" }
request.remove = ["x-gone", "Accept-Encoding"]

[[routes]]
host = "secure.test"
redirect = "https"
pool = "any"

"""

POOLS = ("any", "admin", "api", "deep", "spaced", "named", "under", "deeper", "six", "stripped")


class Several:
    """A balancer with many routes, and a backend for each pool, which says which one it is."""

    def __init__(self, system: System, stack: ExitStack) -> None:
        self.backends = {name: stack.enter_context(Backend(naming(name))) for name in POOLS}
        pools = [f'[pools.{name}]\nbackends = [{{url = "{one.url}"}}]' for name, one in self.backends.items()]
        # Whether it is ready is asked of the pool `default`.
        pools.append("[pools.default]\nbackends = []")
        self.balancer = system.balancer(config=SEVERAL + "\n".join(pools))

    def ask(self, target: str, *fields: str, host: str = "t.example") -> Answer:
        with Client(self.balancer.port) as client:
            client.send(request("GET", target, *fields, host=host))
            return client.read_answer()


def naming(name: str) -> Script:
    fields = ("X-Gone: 1", "X-GONE: 2", "Server: it", "Location: /old", "Set-Cookie: a=1", "Set-Cookie: b=2")
    return serve(ok(name.encode(), *fields))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    with ExitStack() as stack, own_system(tmp_path_factory.mktemp("routes")) as system:
        yield Several(system, stack)


@pytest.mark.parametrize(
    ("host", "target", "pool"),
    [
        ("t.example", "/", "any"),
        ("t.example:8000", "/else?/admin", "any"),
        ("t.example", "/apis", "any"),
        ("t.example", "/api", "api"),
        ("t.example", "/api/", "api"),
        ("t.example", "/api?x", "api"),
        ("t.example", "/api/v1/deeper", "api"),
        ("t.example", "/api/v1/deep", "deep"),
        ("t.example", "/api/v1/deep/er", "deep"),
        ("t.example", "/a%20b/c", "spaced"),
        ("t.example", "/%61%20b", "spaced"),
        ("www.example.com", "/", "named"),
        ("WWW.Example.COM:80", "/admin", "named"),
        ("www.example.com.", "/", "named"),
        ("other.example.com", "/", "under"),
        ("a.b.example.com", "/", "under"),
        ("sub.example.com", "/x", "under"),
        ("a.sub.example.com", "/x/y", "deeper"),
        ("a.sub.example.com", "/y", "under"),
        ("example.com", "/", "any"),
        ("notexample.com", "/", "any"),
        ("[2001:db8::1]:8000", "/", "six"),
        ("[2001:DB8::1]", "/", "six"),
    ],
)
def test_the_most_specific_route_wins(several: Several, host: str, target: str, pool: str) -> None:
    answer = several.ask(target, host=host)
    assert (answer.status, answer.body.decode()) == (200, pool)
    seen = several.backends[pool].requests[-1]
    assert seen.target == target, "forwarded byte for byte"
    assert seen.values("Host") == [host]


@pytest.mark.parametrize(
    "target",
    [
        "/admin/x",
        "/%61dmin/x",
        "/%61%64%6D%69%6e/x",
        "/./admin/x",
        "/x/../admin/x",
        "/api/../admin/x",
        "/api/%2e%2e/admin/x",
        "/api/.%2E/admin/x",
        "/api%2F..%2Fadmin/x",
        "/api/v1/deep/../../../admin/x",
        "/../admin/x",
        "/../../admin/x",
        "//admin/x",
        "/.//admin/x",
        "/api/..//admin/x",
        "/api//../../admin/x",
        "/admin//x",
        "/admin/.",
        "/admin/x/..",
        "http://t.example/api/../admin/x",
    ],
)
def test_no_spelling_slips_past_a_route(several: Several, target: str) -> None:
    """What a backend may read as a path below /admin has gone by its route."""
    answer = several.ask(target)
    assert (answer.status, answer.body) == (200, b"admin")
    seen = several.backends["admin"].requests[-1]
    assert seen.target == target.removeprefix("http://t.example")
    assert seen.values("X-Route") == ["admin"]


@pytest.mark.parametrize(
    "target", ["/admin/../x", "/admin/%2e%2e/x", "/admin%2F../x", "/adminx", "/admin%00"]
)
def test_what_only_looks_like_a_route(several: Several, target: str) -> None:
    assert several.ask(target).body == b"any"


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("/app", "/"),
        ("/app?q=/app", "/?q=/app"),
        ("/app/", "/"),
        ("/app/x/app", "/x/app"),
        ("/%61pp/x%2Fy//z", "/x%2Fy//z"),
        ("/app/.well-known/x", "/.well-known/x"),
        ("/app/a/...", "/a/..."),
    ],
)
def test_a_prefix_is_taken_off(several: Several, target: str, wanted: str) -> None:
    assert several.ask(target, host="strip.test").status == 200
    assert several.backends["stripped"].requests[-1].target == wanted


@pytest.mark.parametrize(
    "target", ["/app/../app/x", "/app/x/../y", "/app%2Fx/%2e%2e/y", "/x/../app/y", "//app/x"]
)
def test_a_prefix_that_cannot_be_taken_off(several: Several, target: str) -> None:
    """400: what would be left is not clear."""
    before = len(several.backends["stripped"].requests)
    assert several.ask(target, host="strip.test").status == 400
    assert len(several.backends["stripped"].requests) == before


def test_fields_are_edited(several: Several) -> None:
    fields = ("X-Many: 1", "X-Gone: a", "x-gone: b", "Accept-Encoding: br", "X-Kept: 1", "X-Request-Id: mine")
    answer = several.ask("/app/p%20q?r", *fields, host="strip.test")
    assert answer.values("Location") == ["https://strip.test/app/p%20q?http"]
    assert answer.values("Server") == ["lb"]
    assert answer.values("Set-Cookie") == ["a=1", "b=2", "lb=1"]
    assert answer.values("X-Id") == ["mine"]
    assert answer.values("X-Gone") == []
    assert answer.body == b"stripped"
    seen = several.backends["stripped"].requests[-1]
    assert seen.values("X-Many") == ["1", "2"]
    assert seen.values("X-Gone") == []
    assert seen.values("Accept-Encoding") == []
    assert seen.values("X-Kept") == ["1"]


@pytest.mark.parametrize("line", ["X-Route: mine", "x-route: mine", "X-ROUTE:mine"])
def test_a_client_cannot_say_what_a_route_sets(several: Several, line: str) -> None:
    assert several.ask("/admin", line).status == 200
    assert several.backends["admin"].requests[-1].values("X-Route") == ["admin"]


@pytest.mark.parametrize(
    ("host", "target", "location"),
    [
        ("secure.test", "/", "https://secure.test/"),
        ("secure.test:8000", "/a%2Fb//c?d=%0d%0a&e", "https://secure.test/a%2Fb//c?d=%0d%0a&e"),
        ("SECURE.test", "/../x", "https://SECURE.test/../x"),
    ],
)
def test_plain_http_is_redirected(several: Several, host: str, target: str, location: str) -> None:
    before = len(several.backends["any"].requests)
    answer = several.ask(target, host=host)
    assert (answer.status, answer.values("Location"), answer.body) == (308, [location], b"")
    assert len(several.backends["any"].requests) == before
    # Who has come over https to a trusted proxy goes on.
    assert several.ask(target, "X-Forwarded-Proto: https", host=host).body == b"any"


def test_no_route(system: System) -> None:
    with Backend() as backend:
        config = (
            f'[pools.default]\nbackends = [{{url = "{backend.url}"}}]\n'
            '[[routes]]\nhost = "only.test"\npath = "/here"\npool = "default"\n'
        )
        balancer = system.balancer(config=config)
        for host, target in (("only.test", "/elsewhere"), ("t.example", "/here/too")):
            with Client(balancer.port) as client:
                client.send(request("GET", target, "Accept: application/json", host=host))
                answer = client.read_answer()
            assert (answer.status, answer.values("Content-Type")) == (404, ["application/problem+json"])
            assert balancer.logged(target)["code"] == "no_route"
        assert backend.requests == []
