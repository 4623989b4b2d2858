"""What the settings of a sticky session's cookie may be: pure functions, as those of `lb.config_checks`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lb.settings import StickySettings

LEAST_SECRET = 16
"""Characters of a secret, at least."""

_NAME = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z_-]{1,64}\Z")
_PATH = re.compile(r"/[\x21-\x3a\x3c-\x7e]*\Z")


def check_cookie(text: str) -> str:
    """The name of a cookie: a token (RFC 6265, section 4.1.1); "" for none."""
    if text and not _NAME.match(text):
        raise ValueError(f"{text!r} is no name of a cookie: at most 64 letters, digits and !#$%&'*+.^`|~_-")
    return text


def check_cookie_path(text: str) -> str:
    """The path of a cookie."""
    if not _PATH.match(text):
        raise ValueError(f"{text!r} must start with / and hold no white space, no ; and only ASCII")
    return text


def check_secret(text: str) -> str:
    """A secret to sign with. The message does not repeat it."""
    if text and len(text) < LEAST_SECRET:
        raise ValueError(
            f"has fewer than {LEAST_SECRET} characters; `openssl rand -base64 32` makes a good one"
        )
    return text


def sticky_problems(sticky: StickySettings) -> Iterator[tuple[str, str]]:
    """What does not go together, as browsers judge it: the key, and what is wrong and the mend."""
    name = sticky.cookie.lower()
    if sticky.same_site == "none" and sticky.secure == "never":
        yield "same_site", 'browsers refuse "none" without `Secure`; set secure to "auto" or "always"'
    if name.startswith(("__secure-", "__host-")) and sticky.secure != "always":
        yield "cookie", f'browsers refuse {sticky.cookie!r} without `Secure`; set secure to "always"'
    if name.startswith("__host-") and sticky.path != "/":
        yield "path", f'browsers refuse {sticky.cookie!r} with a path other than "/"'
