"""The documents hold together: tables are tables, links lead somewhere, and tests that are named exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: A test: in a file of tests/faults, or by its path; without a file it is in the one that was named last.
_TEST = re.compile(r"`((?:[\w/]+\.py)?)(?:::(\w+))?`")
_RULE = re.compile(r"\|(?: *:?-+:? *\|)+\Z")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not in a fenced block, with their numbers."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def cells(row: str) -> list[str]:
    """What is between the bars; one with a backslash before it is text, in code as well."""
    return re.split(r"(?<!\\)\|", row.strip())[1:-1]


def tables(text: str) -> Iterator[list[tuple[int, str]]]:
    """Each run of lines that begin with a bar."""
    found: list[tuple[int, str]] = []
    for number, line in prose(text):
        if line.startswith("|") and (not found or number == found[-1][0] + 1):
            found.append((number, line))
            continue
        if found:
            yield found
        found = [(number, line)] if line.startswith("|") else []
    if found:
        yield found


def faults(text: str) -> list[str]:
    """What is wrong with the tables of a page."""
    wrong = []
    for table in tables(text):
        first = table[0][0]
        if len(table) < 3 or not _RULE.match(table[1][1].strip()):
            wrong.append(f"line {first}: a header, a rule and rows make a table")
        width = len(cells(table[0][1]))
        for number, row in table:
            if not row.rstrip().endswith("|") or len(cells(row)) != width:
                wrong.append(f"line {number}: {len(cells(row))} cells in a table of {width}")
    return wrong


def anchor(heading: str) -> str:
    """What GitHub makes of a heading's text."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """The places of a page that a link may lead to."""
    return {anchor(line.lstrip("#").strip()) for _, line in prose(text) if re.match(r"#+ ", line)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_row_of_a_table_has_as_many_cells_as_its_header(page: Path) -> None:
    assert faults(page.read_text()) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("| a | b |\n| --- | --- |\n| 1 | 2 |\n", 0),
        ("| a | b |\n| --- | --- |\n| 1 \\| 2 | `x\\|y` |\n", 0),
        ("```\n| a |\n```\n", 0),
        ("| a | b |\n| --- | --- |\n| 1 | 2 | 3 | 4 |\n", 1),
        ("| a | b |\n| --- | --- |\n| 1 |\n", 1),
        ("| a | b |\n| --- |\n| 1 | 2 |\n", 1),
        ("| a | b |\n| 1 | 2 |\n| 3 | 4 |\n", 1),
        ("| a | b |\n| --- | --- |\n| 1 | 2\n", 1),
    ],
)
def test_what_is_no_table_is_found(text: str, wrong: int) -> None:
    assert len(faults(text)) == wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for name, _, place in re.findall(r"\]\((?!https?:)([^)#\s]*)(#?)([^)\s]*)\)", text):
        found = page.parent / name if name else page
        assert found.exists(), name
        assert not place or place in anchors(found.read_text()), f"{name}#{place}"


def test_every_test_that_the_promises_name_exists() -> None:
    named: list[tuple[str, str]] = []
    for table in tables((ROOT / "docs" / "reliability.md").read_text()):
        if cells(table[0][1])[-1].strip() != "test":
            continue
        for number, row in table[2:]:
            last = cells(row)[-1].strip()
            found = [match.groups() for match in _TEST.finditer(last)]
            assert found or (last == "the same" and number > table[2][0]), f"line {number} names no test"
            file = ""
            for path, function in found:
                file = path or file
                assert file, f"line {number}: {function} of which file?"
                named.append((file, function))
    assert named
    for file, function in named:
        path = ROOT / file if "/" in file else ROOT / "tests" / "faults" / file
        assert path.exists(), file
        tests = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert not function or function in tests, f"{file}::{function}"
