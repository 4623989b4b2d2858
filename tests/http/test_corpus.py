"""Every case of the corpus, against a running balancer."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.http.case import Case
from tests.http.conftest import Lane
from tests.http.corpus import CASES

pytestmark = pytest.mark.xdist_group("corpus")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(lane: Lane, case: Case) -> None:
    outcome = lane.stage.play(case, lane.balancer.port)
    assert case.wrong(outcome, ours=True) == [], f"{case.rule}: {outcome.summary()}"


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []


def test_nothing_is_left_claimed(lane: Lane) -> None:
    lane.balancer.idle()
