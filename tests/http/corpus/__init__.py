"""The corpus: what HTTP/1.1 asks of a gateway, case by case."""

from __future__ import annotations

from tests.http.case import Case, Topic
from tests.http.corpus import (
    answer_framing,
    answer_heads,
    broken_answers,
    chunks,
    clients,
    expect,
    hops,
    request_fields,
    request_framing,
    request_line,
    targets,
)

TOPICS: tuple[Topic, ...] = (
    *request_line.TOPICS,
    *targets.TOPICS,
    *request_fields.TOPICS,
    *request_framing.TOPICS,
    *chunks.TOPICS,
    *clients.TOPICS,
    *hops.TOPICS,
    *expect.TOPICS,
    *answer_heads.TOPICS,
    *answer_framing.TOPICS,
    *broken_answers.TOPICS,
)
CASES: tuple[Case, ...] = tuple(case for topic in TOPICS for case in topic.cases)
WHY = {case.name: case.why or topic.why for topic in TOPICS for case in topic.cases}
"""Why others differ in a case, where they do."""
