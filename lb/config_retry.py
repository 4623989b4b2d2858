"""What the settings of retries and idempotency keys may be: pure, as the functions of `lb.config_checks`."""

from __future__ import annotations

import re

from lb.settings import RETRY_ON

_METHOD = re.compile(r"[!#$%&'*+.^`|~0-9A-Z_-]{1,32}\Z")
_SCOPE = re.compile(r"(?:ip|(?:header|cookie):[!#$%&'*+.^`|~0-9A-Za-z_-]{1,64})\Z")
_STATUS = re.compile(r"[45]\d\d\Z")


def check_retry_on(words: object) -> tuple[str, ...]:
    """Words and statuses after which another backend is tried."""
    found = tuple(words) if isinstance(words, tuple) else ()
    for word in found:
        if word not in RETRY_ON and not _STATUS.match(word):
            raise ValueError(
                f"{word!r} is nothing to try again after; there are {', '.join(RETRY_ON)}, "
                "and statuses from 400 to 599, in quotes"
            )
    return tuple(dict.fromkeys(found))


def check_methods(words: object) -> tuple[str, ...]:
    """Methods whose requests may carry an `Idempotency-Key`."""
    found = tuple(words) if isinstance(words, tuple) else ()
    for word in found:
        if not _METHOD.match(word):
            raise ValueError(f"{word!r} is no method; write POST")
    return found


def check_scope(words: object) -> tuple[str, ...]:
    """What tells users apart. One of them at least: else they would get each other's answers."""
    found = tuple(words) if isinstance(words, tuple) else ()
    if not found:
        raise ValueError("nothing would tell users apart; name header:NAME, cookie:NAME or ip")
    for word in found:
        if not _SCOPE.match(word):
            raise ValueError(f"{word!r} tells nobody apart; write header:NAME, cookie:NAME or ip")
    return found
