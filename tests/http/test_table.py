"""The page made from the corpus is current, and keeps the section that another tool writes."""

from __future__ import annotations

import subprocess
import sys

from tests.http.case import Topic
from tests.http.corpus import CASES, TOPICS
from tests.http.table import PAGE, Difference, markdown, with_differences


def test_the_page_is_current() -> None:
    page = PAGE.read_text()
    assert page == markdown(page), "run `make docs`"


def test_the_page_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.http.table"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PAGE.parents[1],
    )
    assert done.stdout == PAGE.read_text()


def test_every_case_says_what_is_done() -> None:
    assert [case.name for case in CASES if not (case.done and case.rule and case.rfc)] == []
    assert [topic.title for topic in TOPICS if not (topic.text and topic.why)] == []
    assert isinstance(TOPICS[0], Topic)


def test_the_page_tells_of_all_cases_and_no_others() -> None:
    lines = PAGE.read_text().partition("## Limits")[0].splitlines()
    assert [line.split("`")[-2] for line in lines if line.endswith("` |")] == [case.name for case in CASES]


def test_differences_are_written_and_kept() -> None:
    one = Difference(CASES[0], {"lb": "✓ 200", "other": "✗ a|b"})
    page = with_differences(markdown(), {"lb": "lb", "other": "Other 1.0"}, {"lb": 2, "other": 1}, 2, [one])
    assert "| Other 1.0 | 1 of 2 |" in page
    assert f"| `{CASES[0].name}` | ✓ 200 | ✗ a\\|b |" in page
    assert markdown(page) == page
