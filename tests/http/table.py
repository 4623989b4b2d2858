"""`docs/http.md`: what is done with HTTP/1.1, made from the corpus, so that each line has its test.

    python -m tests.http.table > docs/http.md

The section about other proxies is kept as it stands: `tests.http.differential` writes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.config_table import BY_KEY, default_text
from tests.http.case import Case
from tests.http.corpus import TOPICS, WHY

PAGE = Path(__file__).parents[2] / "docs" / "http.md"

_BEGIN, _END = "<!-- differences -->", "<!-- end of differences -->"
_NOT_RUN = "Not run yet: `make differential`."

#: Setting → what becomes of a request beyond it.
_LIMITS = (
    ("limits.request_line", "414"),
    ("limits.fields", "431"),
    ("limits.field_size", "431"),
    ("limits.head", "431"),
    ("limits.body", "413"),
    ("client.header", "connection closed"),
    ("client.idle", "408, or the connection closed"),
    ("client.keepalive", "connection closed"),
    ("client.half_close", "499 in the log"),
    ("client.request", "504, or the connection closed"),
    ("client.connections", "not accepted until another ends"),
    ("pools.NAME.timeouts.connect", "504"),
    ("pools.NAME.timeouts.response", "504"),
    ("pools.NAME.timeouts.idle", "the client's connection cut"),
)

HEAD = """\
# HTTP/1.1

<!-- Made by `python -m tests.http.table > docs/http.md`. Do not edit. -->

A balancer reads every message twice: once as the client meant it, once as the backend will. Where these two
can differ, somebody gets in. So there is one rule here: **a message has exactly one reading, or it goes no
further**. What is ambiguous from a client is answered 400, and the connection closed, because where the
next request begins is not known any more. What is ambiguous from a backend is answered 502, and that
connection is not used again. What is clear goes on as it came: target byte for byte, fields in their
spelling, order and repetition.

The rules are those of RFC 9110 (semantics) and RFC 9112 (HTTP/1.1). Where they leave a choice, the stricter
way is taken, unless clients that mean well depend on the other one.

Each line below is a case of the corpus in `tests/http/corpus`: a raw client and a raw backend, the bytes of
each written down, a real balancer between them, and predicates over what arrived at either end. To run one:
`pytest "tests/http/test_corpus.py::test_case[cl-te]"`. The same cases are put to nginx, HAProxy, Envoy and
Caddy by `make differential`; [what came of it](#compared-with-other-proxies) is at the end.

"""

LIMITS = """\
## Limits

| setting | default | beyond it |
| --- | --- | --- |
"""

LIMITS_TAIL = """
[settings.md](settings.md) has their units and other names. Fixed: an answer's head of 64 KiB (502), 100
interim answers to one request (502), a chunk-size line or trailer field of 4 KiB and trailers of 32 KiB
(400, or the client's connection cut).

## What is deliberately not done

- **Nothing is repaired.** Bare line feeds, folded lines, whitespace before a colon, equal lengths said
  twice: all of these could be mended, and each mending is a guess what the next program makes of them.
- **No content is decoded, compressed or cached**, and no transfer coding but `chunked` is spoken. `TE` ends
  here, so no backend is asked for another one.
- **Paths are not normalised.** `/a/../b` and `%2F` reach the backend as they are, and routes compare what
  stands there, with escapes decoded once.
- **CONNECT is refused**: this is a gateway for known backends, no proxy for any.
- **`100 Continue` is not sent on a guess.** The backend is asked, and its word passed on; with a body that
  waits for it, no retry is lost.
- **HTTP/0.9 is not spoken** with anybody.

"""

COLUMNS = """\
| rule | section | what is done | case |
| --- | --- | --- | --- |
"""

DIFFERENCES = f"""\
## Compared with other proxies

{_BEGIN}
{_NOT_RUN}
{_END}
"""


@dataclass(frozen=True)
class Difference:
    """A case in which not all do the same, and what each did."""

    case: Case
    outcomes: Mapping[str, str]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _section(rfc: str) -> str:
    return rfc if rfc[:1].isalpha() else f"RFC {rfc}"


def markdown(page: str = "") -> str:
    """The page. Of `page`, as it stood, the section about other proxies is kept."""
    parts = [HEAD]
    for topic in TOPICS:
        parts += [f"## {topic.title}\n\n{topic.text}\n\n", COLUMNS]
        parts += [
            f"| {_cell(case.rule)} | {_section(case.rfc)} | {_cell(case.done)} | `{case.name}` |\n"
            for case in topic.cases
        ]
        parts.append("\n")
    parts.append(LIMITS)
    for key, beyond in _LIMITS:
        parts.append(f"| `{key}` | {default_text(key)} {BY_KEY[key].unit} | {beyond} |\n")
    parts += [LIMITS_TAIL, DIFFERENCES]
    made = "".join(parts)
    kept = re.search(f"{_BEGIN}\n(.*){_END}", page, re.DOTALL)
    return made if kept is None else made.replace(_NOT_RUN + "\n", kept[1])


def with_differences(
    page: str, columns: Mapping[str, str], totals: Mapping[str, int], count: int, found: Sequence[Difference]
) -> str:
    """`page` with that section written anew."""
    lines = [
        f"The predicates of {count} cases that any proxy has to keep to, not those where this one has made",
        "a choice of its own. The others run with the configurations of `make bench`; several have switches",
        "that make them stricter. `make differential` writes this section.",
        "",
        "| proxy | cases passed |",
        "| --- | --- |",
        *(f"| {title} | {totals[name]} of {count} |" for name, title in columns.items()),
        "",
        "Where they differ (✓ as it should be, ✗ not; *heard* counts the requests that reached the backend,",
        "if it is not one):",
        "",
        "| case | " + " | ".join(columns.values()) + " | why |",
        "| --- |" + " --- |" * (len(columns) + 1),
    ]
    for one in found:
        cells = [_cell(one.outcomes[name]) for name in columns]
        lines.append(f"| `{one.case.name}` | " + " | ".join(cells) + f" | {_cell(WHY[one.case.name])} |")
    text = "\n".join(lines)
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n{text}\n{_END}{after}"


if __name__ == "__main__":
    sys.stdout.write(markdown(PAGE.read_text() if PAGE.exists() else ""))
