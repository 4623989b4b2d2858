"""Variables become the plain values that the file would hold."""

from __future__ import annotations

import pytest

from lb.config_env import EnvProblem, env_values, parse_backends, parse_text, unknown_names
from lb.config_table import BY_ENV, LEAVES


def test_backends() -> None:
    text = " http://a:1 ; weight=3;max_connections = 10 ,\n https://b;id=two;backup=True,http://c;backup=no;zone=east-1"
    assert parse_backends(text) == [
        {"url": "http://a:1", "weight": 3, "max_connections": 10},
        {"url": "https://b", "id": "two", "backup": True},
        {"url": "http://c", "backup": False, "zone": "east-1"},
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",", "names no backend"),
        ("http://a;weight", "entry 1, 'weight': write NAME=VALUE"),
        ("http://a;weight=", "entry 1, 'weight=': write NAME=VALUE"),
        ("http://a,http://b;wait=1", "entry 2, 'wait=1': there is no option 'wait'; did you mean 'weight'?"),
        ("http://a;weight=1;weight=2", "weight is given twice"),
        ("http://a;url=http://b", "there is no option 'url'"),
        ("http://a;backup=maybe", "backup must be true or false"),
        ("http://a;weight=1.5", "weight must be a whole number"),
        ("http://a;weight=-1", "weight must be a whole number"),
        ("http://a;weight=²", "weight must be a whole number"),
    ],
)
def test_backends_that_cannot_be_read(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_backends(text)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("workers", "+4", 4),
        ("graceful_timeout", "1.5", 1.5),
        ("graceful_timeout", ".5", 0.5),
        ("pools.NAME.health.enabled", "Yes", True),
        ("pools.NAME.health.enabled", "0", False),
        ("bind", ":80", ":80"),
    ],
)
def test_plain_values(key: str, text: str, value: object) -> None:
    parsed = parse_text(key, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("workers", "1_000"),
        ("workers", "1e3"),
        ("workers", "٣"),
        ("graceful_timeout", "inf"),
        ("graceful_timeout", "1e3"),
        ("graceful_timeout", "."),
        ("pools.NAME.health.enabled", "maybe"),
    ],
)
def test_plain_values_that_cannot_be_read(key: str, text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_text(key, text)


def test_empty_counts_as_not_set() -> None:
    assert list(env_values(dict.fromkeys(BY_ENV, "  "))) == []


def test_every_variable_reaches_its_key() -> None:
    samples = {int: "7", float: "7", str: "x", bool: "true"}
    for name, row in BY_ENV.items():
        kind = LEAVES[row.key].type
        text = "http://a:1" if row.key.endswith("backends") else samples.get(kind, "tcp")
        [(path, variable, value)] = env_values({name: text})
        assert variable == name
        assert not isinstance(value, EnvProblem)
        assert path == tuple(row.key.replace("NAME", "default").split("."))


def test_only_what_looks_like_a_slip_is_worth_a_note() -> None:
    env = {"LB_BACKEND": "", "LB_REDIS_URI": "", "LB_SERVICE_HOST": "", "LB_CONFIG": "x", "PATH": ""}
    assert unknown_names(env) == [
        "LB_BACKEND is not read; did you mean LB_BACKENDS?",
        "LB_REDIS_URI is not read; did you mean LB_REDIS_URL?",
    ]
