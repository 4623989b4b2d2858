"""Reading the whole configuration: layers, messages, secrets, and what only the whole can show."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lb.config import load, read
from lb.errors import ConfigError
from lb.settings import BackendSpec, Route, Settings

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes `lb.toml` into an empty current folder; gives its name."""
    monkeypatch.chdir(tmp_path)

    def to_file(text: str) -> str:
        Path("lb.toml").write_text(text)
        return "lb.toml"

    return to_file


def problems(file: str | None, env: Mapping[str, str] | None = None) -> list[str]:
    """All problems, none of which may be a traceback or more than one line."""
    loaded = read(file, env or {})
    assert all("\n" not in line for line in loaded.problems)
    return list(loaded.problems)


def test_without_anything_the_defaults_hold(write: Write) -> None:
    settings = load(None, {})
    assert settings == Settings(pools=settings.pools)
    assert list(settings.pools) == ["default"]
    assert settings.pools["default"].backends == ()


def test_zero_file_start(write: Write) -> None:
    settings = load(None, {"LB_BACKENDS": "http://127.0.0.1:9001,http://127.0.0.1:9002;weight=3"})
    assert settings.pools["default"].backends == (
        BackendSpec("http://127.0.0.1:9001"),
        BackendSpec("http://127.0.0.1:9002", weight=3),
    )


FULL = """\
bind = "[::]:80"
workers = 3
client.keepalive = 75
log = { access = "off", level = "warning" }

[pools.web]
algorithm = "least-connections"
backends = [
    { url = "http://10.0.0.1:9001", weight = 3, max_connections = 100, id = "one" },
    { url = "https://example.com" },
]
[pools.web.health]
type = "tcp"
interval = 5
status = "200, 300-302"
[pools.web.timeouts]
connect = 0.5

[pools.api]
retry.attempts = 1
upstream = { max_idle = 0 }

[[routes]]
host = "API.example.com"
pool = "api"
[[routes]]
path = "/"
pool = "web"
"""


def test_a_whole_file(write: Write) -> None:
    settings = load(write(FULL), {})
    web, api = settings.pools["web"], settings.pools["api"]
    assert (settings.bind, settings.workers, settings.client.keepalive) == ("[::]:80", 3, 75.0)
    assert (settings.log.access, settings.log.level) == ("", "warning")
    assert web.algorithm == "least-connections"
    assert web.backends == (
        BackendSpec("http://10.0.0.1:9001", 3, 100, "one"),
        BackendSpec("https://example.com:443"),
    )
    assert (web.health.type, web.health.interval, web.health.status) == ("tcp", 5.0, "200,300-302")
    assert (web.timeouts.connect, web.timeouts.response) == (0.5, 60.0)
    assert (api.retry.attempts, api.upstream.max_idle) == (1, 0)
    assert [(r.host, r.path, r.pool) for r in settings.routes] == [
        ("api.example.com", "/", "api"),
        ("", "/", "web"),
    ]


def test_the_file_of_the_current_folder_is_read(write: Write) -> None:
    write("workers = 7\n")
    assert load(None, {}).workers == 7
    assert load(None, {"LB_WORKERS": "2"}).workers == 2


def test_a_named_file_wins_over_the_usual_one(write: Write, tmp_path: Path) -> None:
    write("workers = 7\n")
    other = tmp_path / "other.toml"
    other.write_text("workers = 8\n")
    assert load(None, {"LB_CONFIG": str(other)}).workers == 8
    assert load("lb.toml", {"LB_CONFIG": str(other)}).workers == 7
    assert load(None, {"LB_CONFIG": ""}).workers == 7


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_bytes(b"\xef\xbb\xbfworkers = 7\n")
    assert load(str(file), {}).workers == 7


def test_environment_over_file(write: Write) -> None:
    file = write(
        'bind = "1.2.3.4:1"\n[pools.default]\nalgorithm = "least-connections"\n'
        'backends = [{ url = "http://a:1" }]\ntimeouts = { connect = 1, idle = 2 }\n'
    )
    env = {
        "LB_BIND": "127.0.0.1:1",
        "LB_BACKENDS": "http://b:2",
        "LB_CONNECT_TIMEOUT": "9",
        "LB_ALGORITHM": "",
    }
    settings = load(file, env)
    pool = settings.pools["default"]
    assert settings.bind == "127.0.0.1:1"
    assert pool.backends == (BackendSpec("http://b:2"),)
    assert (pool.timeouts.connect, pool.timeouts.idle) == (9.0, 2.0)
    assert pool.algorithm == "least-connections"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wrokers = 1", "lb.toml:1: wrokers: there is no such key; did you mean 'workers'?"),
        ("\n[pool.web]", "lb.toml:2: pool: there is no such key; did you mean 'pools'?"),
        (
            "[pools.web]\n\n[pools.web.timeout]\nconnect = 1",
            "lb.toml:3: pools.web.timeout: there is no such key; did you mean 'timeouts'?",
        ),
        (
            '[pools.web]\nbackends = [\n  { url = "http://a:1" },\n  { url = "http://b:1", wieght = 3 },\n]',
            "lb.toml:4: pools.web.backends[1].wieght: there is no such key; did you mean 'weight'?",
        ),
        (
            '[pools.web]\nbackends = [\n  { url = "http://a:1", weight = 1001 },\n]',
            "lb.toml:3: pools.web.backends[0].weight: 1001 is out of range; use 0 to 1000",
        ),
        ("client.connections = 0", "lb.toml:1: client.connections: 0 is out of range; use 1 to 1000000"),
        ("workers = true", "lb.toml:1: workers: must be a whole number, not true"),
        ("workers = 1.5", "lb.toml:1: workers: must be a whole number, not 1.5"),
        ('workers = "4"', 'lb.toml:1: workers: must be a whole number, not "4"'),
        ("graceful_timeout = nan", "lb.toml:1: graceful_timeout: nan is out of range; use 0 to 86400 s"),
        ("graceful_timeout = inf", "lb.toml:1: graceful_timeout: inf is out of range; use 0 to 86400 s"),
        ("bind = 8000", 'lb.toml:1: bind: must be text in quotes, "…", not 8000'),
        ("log = 1", "lb.toml:1: log: must be a table, [log]"),
        ("pools = 1", "lb.toml:1: pools: must be tables: [pools.NAME]"),
        ("[[pools]]", "lb.toml:1: pools: must be tables: [pools.NAME]"),
        (
            'pools.web.backends = "http://a:1"',
            "lb.toml:1: pools.web.backends: must be an array of tables: backends = [{ … }, …]",
        ),
        (
            'pools.web.backends = ["http://a:1"]',
            "lb.toml:1: pools.web.backends[0]: must be an inline table, { … }",
        ),
        ("pools.web.backends = [{ weight = 1 }]", "lb.toml:1: pools.web.backends[0]: 'url' is missing"),
        ("[[routes]]\n[[routes]]", "lb.toml:1: routes[0]: 'pool' is missing"),
        (
            '[pools.web]\nalgorithm = "round-robbin"',
            "lb.toml:2: pools.web.algorithm: 'round-robbin' is no algorithm; did you mean 'round-robin'?",
        ),
        (
            '[pools.web.health]\ntype = "htp"',
            "lb.toml:2: pools.web.health.type: 'htp' is not known; did you mean 'http'?",
        ),
        ('[log]\nlevel = "warn"', "lb.toml:2: log.level: 'warn' is not known; did you mean 'warning'?"),
        (
            '[pools."my pool"]',
            "lb.toml:1: pools.\"my pool\": 'my pool' is no pool name: letters, digits, '.', '_' and '-', "
            "at most 63, starting with a letter or digit",
        ),
        (
            '[pools.web]\n[[routes]]\npool = "wbe"',
            "lb.toml:3: routes[0].pool: there is no pool 'wbe'; did you mean 'web'?",
        ),
        (
            '[pools.web]\n[[routes]]\npool = "web"\n[[routes]]\nhost = "*"\npool = "web"',
            "lb.toml:4: routes[1]: has the host and path of lb.toml:2: routes[0]; remove one of them",
        ),
        (
            "[pools.a]\n[pools.b]",
            "lb.toml:1: pools: there are 2 pools, none of them 'default', and no [[routes]]; "
            "say which requests go to which",
        ),
        (
            '[pools.web]\nbackends = [\n { url = "http://a:80" },\n { url = "http://a/" },\n]',
            "lb.toml:4: pools.web.backends[1]: the id 'a:80' is already that of "
            "lb.toml:3: pools.web.backends[0]; give one of them another `id`, or remove it",
        ),
        (
            'control_bind = "0.0.0.0:8001"',
            "lb.toml:1: control_bind: 0.0.0.0:8001 can be reached from other machines: "
            "set LB_CONTROL_TOKEN, or bind to 127.0.0.1",
        ),
        (
            'bind = "127.0.0.1:8001"',
            "lb.toml:1: bind: 127.0.0.1:8001 would be that of both `bind` and `control_bind`; change one",
        ),
        ("a = \n", "lb.toml:1: is not TOML: Invalid value"),
        ("a = [1,\n\n", "lb.toml:1: is not TOML: Invalid value at the end of the text"),
        (
            'pools.web.backends = [\n  { url = "http://a:1",\n    weight = 3 },\n]',
            "lb.toml:2: is not TOML: Invalid initial character for a key part; "
            "an inline table, { … }, must stand on one line",
        ),
    ],
)
def test_what_is_wrong_is_said_with_place_key_and_mend(write: Write, text: str, expected: str) -> None:
    assert problems(write(text + "\n"))[0] == expected


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"LB_WORKERS": "many"}, "LB_WORKERS: must be a whole number, not 'many'"),
        ({"LB_WORKERS": "-1"}, "LB_WORKERS: -1 is out of range; use 0 to 1024"),
        ({"LB_CONNECT_TIMEOUT": "nan"}, "LB_CONNECT_TIMEOUT: must be a number, not 'nan'"),
        ({"LB_BIND": "8000"}, "LB_BIND: '8000' has no port; write host:port, [v6]:port or unix:/path"),
        (
            {"LB_ALGORITHM": "leastconn"},
            "LB_ALGORITHM: 'leastconn' is no algorithm; did you mean 'least-connections'?",
        ),
        (
            {"LB_BACKENDS": "http://a:1, ftp://b:2"},
            "LB_BACKENDS, entry 2, url: 'ftp://b:2' must start with http://, https:// or http+unix://",
        ),
        (
            {"LB_BACKENDS": "http://a:1;weight=5000"},
            "LB_BACKENDS, entry 1, weight: 5000 is out of range; use 0 to 1000",
        ),
        (
            {"LB_BACKENDS": "http://a:1,http://a:1"},
            "LB_BACKENDS, entry 2: the id 'a:1' is already that of LB_BACKENDS, entry 1; "
            "give one of them another `id`, or remove it",
        ),
        (
            {"LB_CONTROL_BIND": "[::]:8001"},
            "LB_CONTROL_BIND: [::]:8001 can be reached from other machines: "
            "set LB_CONTROL_TOKEN, or bind to 127.0.0.1",
        ),
        ({"LB_CONFIG": "missing.toml"}, "missing.toml (named by LB_CONFIG): no such file"),
        ({"LB_CONFIG": "/"}, "/ (named by LB_CONFIG): cannot be read: Is a directory"),
    ],
)
def test_an_error_of_the_environment_names_the_variable(
    write: Write, env: dict[str, str], expected: str
) -> None:
    assert problems(None, env) == [expected]


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    assert problems("missing.toml") == ["missing.toml: no such file"]
    Path("latin.toml").write_bytes(b'bind = "\xe9"\n')
    assert problems("latin.toml") == ["latin.toml: is not UTF-8 text (byte 8)"]
    deep = write("a = " + "[" * 5000)
    assert problems(deep)[0].startswith("lb.toml")
    if os.geteuid() != 0:  # root may read everything
        Path("lb.toml").chmod(0)
        assert problems("lb.toml") == ["lb.toml: cannot be read: Permission denied"]


def test_all_problems_are_found_at_once_and_the_first_is_raised(write: Write) -> None:
    file = write("wrokers = 1\nbind = 1\n[pools.default]\nalgorithm = 'x'\n")
    assert len(problems(file, {"LB_WORKERS": "x"})) == 4
    with pytest.raises(ConfigError, match=r"^LB_WORKERS: .* \(and 3 more: `lb config check` lists them\)$"):
        load(file, {"LB_WORKERS": "x"})


def test_a_token_opens_the_control_side(write: Write) -> None:
    env = {"LB_CONTROL_BIND": "0.0.0.0:8001", "LB_CONTROL_TOKEN": "abc123"}
    assert load(None, env).control_token == "abc123"


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ('control_token = "hunter 2"', {}),
        ("control_token = 42424242", {}),
        ('redis_url = "http://u:hunter@h"', {}),
        ('redis_url = "redis://u:hunter/2@h:1"', {}),
        ("", {"LB_CONTROL_TOKEN": "hunter 2"}),
        ("", {"LB_REDIS_URL": "redis//:hunter@h:6379"}),
        ("", {"LB_REDIS_URL": "redis://:hunter@h:port"}),
        ("", {"LB_REDIS_URL": "redis://:hunter@h:6379/x"}),
        ("", {"LB_REDIS_URL": "hunter"}),
        ("", {"LB_BACKENDS": "http://u:hunter@a:1"}),
        ("", {"LB_BACKENDS": "ftp://u:hunter@a:1"}),
        ("", {"LB_BACKENDS": "http://u:hunter@[a:1"}),
        ('pools.default.backends = [{ url = "ftp://u:hunter@a:x" }]', {}),
    ],
)
def test_secrets_are_not_repeated(write: Write, text: str, env: dict[str, str]) -> None:
    found = problems(write(text + "\n"), env)
    assert found
    assert "hunter" not in "".join(found)
    assert "4242" not in "".join(found)


def test_variables_for_a_default_pool_that_the_file_does_not_have(write: Write) -> None:
    file = write('[pools.web]\nbackends = [{ url = "http://a:1" }]\n')
    assert problems(file, {"LB_ALGORITHM": "least-connections"}) == [
        "LB_ALGORITHM: is for the pool 'default', which lb.toml does not have; "
        "set it there, in the tables of its pools"
    ]
    # Its backends make it one, beside those of the file.
    settings = load(file, {"LB_ALGORITHM": "least-connections", "LB_BACKENDS": "http://b:1"})
    assert list(settings.pools) == ["web", "default"]


def test_where_requests_go_without_routes(write: Write) -> None:
    assert load(write("[pools.default]\n[pools.web]\n"), {}).routes == ()
    assert load(write("[pools.web]\n"), {}).routes == (Route("web"),)
    assert load(write(""), {}).routes == ()


def test_notes(write: Write) -> None:
    loaded = read(
        write("[pools.a]\n[pools.b]\n[[routes]]\npool = 'a'\n"), {"LB_BACKEND": "x", "LB_PORT": "1"}
    )
    assert loaded.settings is not None
    assert list(loaded.notes) == [
        "LB_BACKEND is not read; did you mean LB_BACKENDS?",
        "pool 'a' has no backends here; it answers 503 until some are added",
        "pool 'b' has no backends here; it answers 503 until some are added",
        "pool 'b' gets no requests: no route leads to it",
    ]


def test_zones_as_they_are_configured(write: Write) -> None:
    file = write(
        "zone = 'esat'\n[pools.a]\nzone_threshold = 0.5\nbackends = [{url = 'http://a:1', zone = 'east'}]\n"
    )
    loaded = read(file, {})
    assert loaded.settings is not None
    assert (loaded.settings.zone, loaded.settings.pools["a"].zone_threshold) == ("esat", 0.5)
    assert [spec.zone for spec in loaded.settings.pools["a"].backends] == ["east"]
    assert loaded.notes[0] == (
        "no backend of pool 'a' is in the zone 'esat' of this balancer; did you mean 'east'?"
    )
    loaded = read(file, {"LB_ZONE": "east"})
    assert loaded.settings is not None
    assert loaded.settings.zone == "east"
    assert not loaded.notes
    many = ",".join(f"http://a:{n};zone=z{n}" for n in range(1, 34))
    assert read(write(""), {"LB_BACKENDS": many}).problems == (
        "LB_BACKENDS: the backends are in more than 32 zones; use fewer",
    )


def test_origins(write: Write) -> None:
    loaded = read(write("workers = 1\n[client]\nidle = 3\n"), {"LB_BIND": ":1", "LB_BACKENDS": "http://a:1"})
    assert loaded.origin(("workers",)) == "lb.toml:1"
    assert loaded.origin(("client", "idle")) == "lb.toml:3"
    assert loaded.origin(("client", "header")) == "default"
    assert loaded.origin(("bind",)) == "LB_BIND"
    assert loaded.origin(("pools", "default", "backends", 0, "url")) == "LB_BACKENDS"
