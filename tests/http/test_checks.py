"""Every case can fail: what it demands is not what a proxy does that always does the same."""

from __future__ import annotations

import pytest

from tests.http.case import Case, Heard, Outcome, Say
from tests.http.corpus import CASES
from tests.http.wire import read_answers, read_body, read_head
from tests.support.backends import answer_of
from tests.support.clients import Answer

SILENCE = Outcome()
REFUSAL = Outcome(
    answers=[Answer(answer_of(400), b"", True)], got=answer_of(400), ended="closed", again=False
)


def passed_on(case: Case) -> Outcome:
    """What comes of a case when a proxy passes all bytes on as they are, both ways."""
    data = b"".join(step for step in case.send if isinstance(step, bytes))
    outcome = Outcome(sent=data, ended="kept")
    while (found := read_head(data, 0)) is not None:
        request, data = read_body(*found)
        outcome.heard.append(request)
        if not request.whole:
            break
    for number in range(max(len(outcome.heard), 1)):
        say: Say = case.reply[min(number, len(case.reply) - 1)]
        outcome.got += b"".join(s for s in (*say.unasked, *say.early, *say.steps) if isinstance(s, bytes))
    found_answers = read_answers(outcome.got, case.methods, over=True)
    outcome.answers, outcome.dangling, outcome.left = found_answers
    return outcome


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_case_is_content_with_silence_and_refusal_and_anything(case: Case) -> None:
    if not case.name.startswith("half-closed-"):  # some of them want nothing but a quiet end
        assert case.wrong(SILENCE, ours=True), "silence would do"
    worst = Outcome(
        heard=[Heard(b"GET /smuggled HTTP/1.1\r\n\r\n", whole=True)] * 9, ended="poisoned", again=False
    )
    assert case.wrong(worst, ours=True), "anything would do"
    assert any(case.wrong(outcome, ours=True) for outcome in (REFUSAL, passed_on(case))), "either would do"
