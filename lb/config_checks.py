"""What each setting may be, beyond its type: pure functions from a value to its normal form.

No I/O, no environment. Each raises ValueError whose text says what is wrong and how to mend it; none
ever repeats a secret.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from lb.algorithms import UnknownAlgorithm, algorithm
from lb.algorithms import names as algorithm_names
from lb.config_retry import check_methods, check_retry_on, check_scope
from lb.config_sticky import check_cookie, check_cookie_path, check_secret
from lb.config_table import BY_KEY
from lb.model import check_url
from lb.state.keys import POOL_NAME, check_zone

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?\Z")
#: Ids stand in the keys of hashes, in URLs of the control API and on command lines.
_ID = re.compile(r"[A-Za-z0-9\[%][A-Za-z0-9._:+\[\]%~@-]{0,254}\Z")
_STATUS_PART = re.compile(r"(\d{3})(?:-(\d{3}))?\Z")
_USERINFO = re.compile(r"//[^\s\"']*@")
_QUERY_SECRET = re.compile(r"(?i)([?&][a-z_]*pass[a-z_]*=)[^&\s\"']*")
_TOKEN = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_VARIABLE = re.compile(r"\{([a-z_]+)\}")
VARIABLES = ("client_ip", "host", "path", "request_id", "scheme")
"""What may stand in braces in the value of a field that a route sets or adds."""
_FRAMING = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_REDIS_SCHEMES = ("redis", "rediss", "unix")


def mask(text: str) -> str:
    """`text` without the user names and passwords of URLs: before `@`, and in parameters named like one."""
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub("//***@", text))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or what there is to choose from."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(sorted(names))}" if names else ""


def split_bind(text: str) -> tuple[str, int] | str:
    """The host and port of `host:port` or `[v6]:port`, or the path of `unix:/path`.

    Raises ValueError for anything else.
    """
    mend = "write host:port, [v6]:port or unix:/path"
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{text!r} names no absolute path; {mend}")
        if len(path.encode()) > 107:
            raise ValueError("the path of a unix socket has at most 107 bytes; use a shorter one")
        return path
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit():
        raise ValueError(f"{text!r} has no port; {mend}")
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port} is out of range; use 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"{host!r} is no IPv6 address; {mend}") from None
    elif ":" in host:
        raise ValueError(f"an IPv6 address needs brackets: [{host}]:{port}")
    elif host == "":
        host = "0.0.0.0"  # noqa: S104 - `:8000` asks for it
    elif re.fullmatch(r"[\d.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"{host!r} is no IPv4 address; {mend}") from None
    elif not _HOST_NAME.match(host):
        raise ValueError(f"{host!r} is no host name; {mend}")
    return host, int(port)


def check_bind(text: str) -> str:
    """An address to listen on, in its normal form."""
    where = split_bind(text)
    if isinstance(where, str):
        return f"unix:{where}"
    host, port = where
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_private(bind: str) -> bool:
    """Can only this machine reach this (valid) address?"""
    where = split_bind(bind)
    if isinstance(where, str):
        return True
    host = where[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_token(text: str) -> str:
    """A bearer token: what may stand in a header (RFC 6750, section 2.1)."""
    if text and not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text):
        raise ValueError("a token is made of letters, digits and -._~+/, with = at the end")
    return text


def check_redis_url(text: str) -> str:
    """The address of the shared state. The messages do not repeat it: it may hold a password."""
    if not text:
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        # What urlsplit says would quote a part of the password.
        raise ValueError(
            "is no URL, or its port is no number up to 65535; in a password, %-encode : / @ and the like"
        ) from None
    if parts.scheme not in _REDIS_SCHEMES:
        raise ValueError(f"must start with one of {', '.join(s + '://' for s in _REDIS_SCHEMES)}")
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("names no socket; write unix:///path/to/socket")
    elif parts.scheme in ("redis", "rediss"):
        if not parts.hostname:
            raise ValueError("names no host; write redis://host:6379/0")
        if port == 0:
            raise ValueError("port 0 is no address to connect to")
        if not re.fullmatch(r"/?\d*/?", parts.path):
            raise ValueError("must end in the number of a database; write redis://host:6379/0")
    return text


def check_path(text: str) -> str:
    """The path of a probe or a route."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} must start with /")
    if any(ord(char) <= 32 or ord(char) > 126 for char in text):
        raise ValueError(f"{text!r} must not hold white space or non-ASCII letters; use %-encoding")
    if "#" in text:
        raise ValueError(f"{text!r}: a path ends before #")
    return text


def check_route_path(text: str) -> str:
    """The start of a path; a query is no part of it."""
    if "?" in text:
        raise ValueError(f"{text!r}: routes look at the path only; leave out what starts with ?")
    return check_path(text)


def check_route_host(text: str) -> str:
    """A host name, `*.name`, an IP address, or "" for any."""
    host = text.lower().rstrip(".")
    bare = host.removeprefix("*.")
    if host in ("", "*"):
        return ""
    if bare.startswith("[") and bare.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(bare[1:-1])}]"
        except ValueError:
            raise ValueError(f"{text!r} is no IPv6 address") from None
    if ":" in bare or "/" in bare:
        raise ValueError(f"{text!r} must be a host alone, without scheme, port or path")
    if not _HOST_NAME.match(bare):
        raise ValueError(f"{text!r} is no host name; write www.example.com or *.example.com")
    return host


def check_status(text: str) -> str:
    """Codes and ranges: "200-399,401"."""
    if not text.strip():
        raise ValueError('no status would be a success; write codes and ranges, such as "200-399,401"')
    parts = []
    for part in text.split(","):
        match = _STATUS_PART.match(part.strip())
        low = int(match[1]) if match else 0
        high = int(match[2] or match[1]) if match else 0
        if not match or not 100 <= low <= 599 or not 100 <= high <= 599:
            raise ValueError(
                f"{part.strip()!r} is no status; write codes from 100 to 599, such as 200-399,401"
            )
        if low > high:
            raise ValueError(f"{part.strip()!r} runs backwards; write {high}-{low}")
        parts.append(part.strip())
    return ",".join(parts)


def check_unhealthy_status(text: str) -> str:
    """Codes and ranges within 500 to 599, or none: a request that is wrong is no fault of the backend."""
    found = check_status(text) if text.strip() else ""
    if any(part and not part.startswith("5") for part in found.split(",")):
        raise ValueError(f"{found!r} is no fault of backends; write codes from 500 to 599")
    return found


def check_id(text: str) -> str:
    """The id of a backend; "" leaves it to the address."""
    if text and not _ID.match(text):
        raise ValueError(
            f"{text!r} is no id: letters, digits and . _ : + % ~ @ -, a letter or digit first, at most 255"
        )
    return text


def check_pool_name(text: str) -> str:
    """The name of a pool; a route that only redirects has none."""
    if text and not POOL_NAME.match(text):
        raise ValueError(
            f"{text!r} is no pool name: letters, digits, '.', '_' and '-', at most 63, "
            "starting with a letter or digit"
        )
    return text


def check_algorithm(text: str) -> str:
    """The name of an algorithm, built in or installed. An installed one is loaded, to see that it can be."""
    try:
        algorithm(text)
    except UnknownAlgorithm as exc:
        raise ValueError(f"{exc}{did_you_mean(text, algorithm_names())}") from None
    return text


def check_hash_key(text: str) -> str:
    """What `consistent-hash` goes by."""
    from lb.algorithms.hashing import check_key

    return check_key(text)


def check_balance(value: float) -> float:
    """How far above its share a backend may be; at 1 or less there would not be room for all."""
    if 0 < value <= 1:
        raise ValueError(f"{value:g} leaves no room above the shares; use more than 1, such as 1.25, or 0")
    return value


def check_access_log(text: str) -> str:
    """`-`, `off` (kept as ""), or a path."""
    if text == "off":
        return ""
    if "\0" in text or "\n" in text:
        raise ValueError("a path holds no line end and no NUL")
    return text


def check_dir(text: str) -> str:
    """A folder; the socket in it must have a name short enough for the system."""
    if "\0" in text or "\n" in text:
        raise ValueError("a path holds no line end and no NUL")
    if len(text.encode()) > 90:
        raise ValueError("is too long for the unix socket in it; use at most 90 bytes")
    return text


def check_upstream_host(text: str) -> str:
    """The Host for backends: "" or "backend", or a host and perhaps a port."""
    if text in ("", "backend"):
        return text
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if colon and not (port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: the port is no number from 1 to 65535")
    name = check_route_host(host if colon else text)
    if not name or name.startswith("*"):
        raise ValueError(f"{text!r} is no host; write www.example.com, or backend")
    return text


def check_server_name(text: str) -> str:
    """The name on a certificate: a host or an IP address, "" for that of the URL."""
    name = check_route_host(text)
    if text and (not name or name.startswith("*")):
        raise ValueError(f"{text!r} is no name of a server; write backend.example.com")
    return name.strip("[]")


def check_networks(networks: object) -> tuple[str, ...]:
    """Addresses and networks (CIDR), in their normal form."""
    found = []
    for text in networks if isinstance(networks, tuple) else ():
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError as exc:
            raise ValueError(f"{text!r} is no network: {exc}; write 10.0.0.0/8 or 192.0.2.1") from None
    return tuple(found)


def check_edits(edits: Mapping[str, str] | tuple[str, ...]) -> object:
    """Names, and values, of fields that a route may change (RFC 9110, section 5)."""
    for name in edits:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a field; write X-Name")
        if name.lower() in _FRAMING:
            raise ValueError(f"{name!r} frames or routes the message, which is not for a route to say")
    if isinstance(edits, Mapping):
        for name, value in edits.items():
            if not _FIELD_VALUE.fullmatch(value):
                raise ValueError(
                    f"the value of {name!r} must be printable, and begin and end with a character"
                )
            for variable in _VARIABLE.findall(value):
                if variable not in VARIABLES:
                    raise ValueError(
                        f"the value of {name!r}: there is no {{{variable}}}; use "
                        + ", ".join(f"{{{known}}}" for known in VARIABLES)
                    )
    return edits


def check_own_field(text: str) -> str:
    """The name of a field that the balancer adds to answers; "": none."""
    if text:
        check_edits((text,))
    return text


_TEXT_CHECKS: Mapping[str, Callable[[str], str]] = {
    "bind": check_bind,
    "control_bind": check_bind,
    "control_token": check_token,
    "redis_url": check_redis_url,
    "runtime_dir": check_dir,
    "zone": check_zone,
    "log.access": check_access_log,
    "decisions.header": check_own_field,
    "pools.NAME.algorithm": check_algorithm,
    "pools.NAME.hash.key": check_hash_key,
    "pools.NAME.sticky.cookie": check_cookie,
    "pools.NAME.sticky.path": check_cookie_path,
    "pools.NAME.sticky.secret": check_secret,
    "pools.NAME.host": check_upstream_host,
    "pools.NAME.tls.server_name": check_server_name,
    "pools.NAME.backends[].url": check_url,
    "pools.NAME.backends[].id": check_id,
    "pools.NAME.backends[].zone": check_zone,
    "pools.NAME.health.path": check_path,
    "pools.NAME.health.status": check_status,
    "pools.NAME.outlier.unhealthy_status": check_unhealthy_status,
    "routes[].pool": check_pool_name,
    "routes[].host": check_route_host,
    "routes[].path": check_route_path,
}

_LIST_CHECKS: Mapping[str, Callable[[object], tuple[str, ...]]] = {
    "trusted_proxies": check_networks,
    "allowed_backends": check_networks,
    "decisions.header_for": check_networks,
    "pools.NAME.retry.on": check_retry_on,
    "pools.NAME.idempotency.methods": check_methods,
    "pools.NAME.idempotency.scope": check_scope,
}


def check_value(key: str, value: object) -> object:
    """Check a value of the right type for the key of the table; return its normal form.

    Raises ValueError saying what is wrong and the mend.
    """
    row = BY_KEY[key]
    if row.limits and isinstance(value, int | float) and not row.low <= value <= row.high:
        unit = f" {row.unit}" if row.unit in ("s", "bytes") else ""
        raise ValueError(f"{value!r} is out of range; use {row.low:g} to {row.high:.10g}{unit}")
    if key == "pools.NAME.hash.balance" and isinstance(value, int | float):
        return check_balance(value)
    if key in _LIST_CHECKS:
        return _LIST_CHECKS[key](value)
    if key.startswith("routes[].re") and isinstance(value, Mapping | tuple):
        return check_edits(value)
    if isinstance(value, str):
        if key in _TEXT_CHECKS:
            return _TEXT_CHECKS[key](value)
        if row.choices and value not in row.choices:
            raise ValueError(f"{value!r} is not known{did_you_mean(value, row.choices)}")
    return value
