"""Where keys stand, in all the ways TOML can write them; checked against `tomllib`."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.config_lines import KeyPath, find_lines, line_of, show_path

TOUR = """\
# a comment with [a.table] and key = "x"
bind = "0.0.0.0:8000" # = "]"
client.keepalive = 3
"control_bind" = '127.0.0.1:8001'

[log]
access = \"\"\"
not = "a key"
[nor.a.table]
\"\"\"
level = '''it's a "level" ''''

[pools . "my pool"]
backends = [   # several lines
  { url = "http://a:1", weight = 3 },
  # { url = "commented out" },
  { url = "http://b:1", "weight" = 4 }, [1,
    2],
]
timeouts = { connect = 1.5, "idle" = 3, nested.deep.key = [{ x = 1 }] }
[pools."my pool".health]
status = "200-399, \\"]}#"

[[routes]]
pool = "a"
[[routes]]
pool = "b"
[routes.sub]
key = 1979-05-27T07:32:00Z
[[routes.inner]]
x = 1
[[routes.inner]]
x = [[1], [2,
[3]]]
"""


def every_path(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """All key paths of a parsed document."""
    if isinstance(value, dict):
        pairs = [((*path, key), item) for key, item in value.items()]
    elif isinstance(value, list):
        pairs = [((*path, index), item) for index, item in enumerate(value)]
    else:
        return []
    return [found for at, item in pairs for found in [at, *every_path(item, at)]]


def number(text: str) -> int:
    """The line of the only line that contains `text`."""
    [line] = [n for n, line in enumerate(TOUR.splitlines(), 1) if text in line]
    return line


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("bind",), "bind = "),
        (("client", "keepalive"), "client.keepalive"),
        (("control_bind",), '"control_bind"'),
        (("log",), "[log]"),
        (("log", "level"), "level = '''"),
        (("pools", "my pool"), '[pools . "my pool"]'),
        (("pools", "my pool", "backends", 0, "weight"), "http://a:1"),
        (("pools", "my pool", "backends", 1), "http://b:1"),
        (("pools", "my pool", "backends", 1, "url"), "http://b:1"),
        (("pools", "my pool", "backends", 1, "weight"), '"weight" = 4'),
        (("pools", "my pool", "backends", 2), "http://b:1"),
        (("pools", "my pool", "backends", 2, 1), "    2],"),
        (("pools", "my pool", "timeouts", "nested", "deep", "key", 0, "x"), "timeouts = "),
        (("pools", "my pool", "health"), '"my pool".health'),
        (("pools", "my pool", "health", "status"), "status = "),
        (("routes", 0, "pool"), 'pool = "a"'),
        (("routes", 1, "pool"), 'pool = "b"'),
        (("routes", 1, "sub", "key"), "key = 1979"),
        (("routes", 1, "inner", 0, "x"), "x = 1\n"),
        (("routes", 1, "inner", 1, "x", 1, 1), "[3]]]"),
    ],
)
def test_tour(path: KeyPath, text: str) -> None:
    lines = find_lines(TOUR)
    expected = number(text) if not text.endswith("\n") else TOUR.splitlines().index(text.strip()) + 1
    assert lines[path] == expected


def test_the_tour_is_toml_and_no_key_is_missed_or_made_up() -> None:
    found = find_lines(TOUR)
    assert set(found) == set(every_path(tomllib.loads(TOUR)))


def test_inline_tables_over_several_lines() -> None:
    """TOML 1.1 has them; whether `tomllib` does depends on the release of Python."""
    lines = find_lines("a = [{\n b = 1, # one\n c = {\n\n d = 2 },\n}]\ne = 3\n")
    assert lines == {
        ("a",): 1,
        ("a", 0): 1,
        ("a", 0, "b"): 2,
        ("a", 0, "c"): 3,
        ("a", 0, "c", "d"): 5,
        ("e",): 7,
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends(end: str) -> None:
    lines = find_lines(f"a = 1{end}{end}[b]{end}c = [{end}1,{end}2]{end}")
    assert lines[("b", "c")] == 4
    assert lines[("b", "c", 1)] == 6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#",
        "[",
        "[[",
        "a",
        "a =",
        "a = [",
        "a = {",
        'a = "',
        "a = '''",
        "]",
        "= = =",
        "a.b.",
        '"\\',
        "{]}",
        "\x00",
    ],
)
def test_what_is_no_toml_ends_all_the_same(text: str) -> None:
    find_lines(text)


@given(st.text(alphabet="ab=[]{}.,'\"\\#\n \t1", max_size=60))
def test_any_text_ends_and_toml_is_covered(text: str) -> None:
    """Whatever `tomllib` accepts, every path in it has a line, and it is a line of the text."""
    lines = find_lines(text)
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    for path in every_path(parsed):
        assert path in lines
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@given(
    st.recursive(
        st.integers(0, 9) | st.sampled_from(["x", 'q"', "a]b", "c#d"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["a", "b c", "d.e", 'f"', "é"]), inner, max_size=3)
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_every_value_stands_where_it_was_written(value: dict[str, Any]) -> None:
    """Write a random document with every element of an array on a line of its own, and look them up."""
    out: list[str] = []
    expected: dict[KeyPath, int] = {}

    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def write(item: Any, path: KeyPath) -> None:
        if isinstance(item, list):
            out[-1] += "["
            for index, element in enumerate(item):
                out.append("  ")
                expected[(*path, index)] = len(out)
                write(element, (*path, index))
                out[-1] += ","
            out[-1] += "]"
        elif isinstance(item, dict):
            out[-1] += "{"
            for index, (key, element) in enumerate(item.items()):
                out[-1] += f"{', ' if index else ''}{quote(key)} = "
                expected[(*path, key)] = len(out)
                write(element, (*path, key))
            out[-1] += "}"
        else:
            out[-1] += str(item) if isinstance(item, int) else quote(item)

    for key, item in value.items():
        out.append(f"{quote(key)} = ")
        expected[(key,)] = len(out)
        write(item, (key,))
    text = "\n".join(out)
    assert tomllib.loads(text) == value
    assert dict(find_lines(text)) == expected


def test_the_nearest_line() -> None:
    lines = find_lines("[a]\nb = 1\n")
    assert line_of(lines, ("a", "b")) == 2
    assert line_of(lines, ("a", "missing")) == 1
    assert line_of(lines, ("c",)) is None


def test_paths_are_shown_as_written() -> None:
    assert show_path(("pools", "my pool", "backends", 1, "url")) == 'pools."my pool".backends[1].url'
    assert show_path(("a", "", 'q"')) == 'a."".' + '"q\\""'
