"""One probe of one backend: connect, ask, read the head of the answer, within one time limit.

Certificates of `https` backends are not verified, unless the daemon's own configuration has TLS settings for
their pool: those hold for probes, too. Without them a probe asks whether the backend answers, like HAProxy's
`check-ssl verify none` and nginx's `proxy_ssl_verify off`: a daemon need not have the configuration of the
balancers. The name is sent (SNI) in any case, so that the backend can choose its certificate. A `tcp` probe
connects and does nothing else, also on `https` backends.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import gevent
from gevent import socket, ssl

from lb import __version__
from lb.certificates import client_context
from lb.health.names import Address, NameLookupError, Names, literal
from lb.health.policy import parse_status
from lb.model import DEFAULT_PORTS, Backend, HealthPolicy
from lb.settings import PoolConfig, UpstreamTls

#: Longest head that is read, bytes, interim answers included.
HEAD_LIMIT = 16 * 1024
#: A name with more addresses: the others are not tried.
MOST_ADDRESSES = 4

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: [^\r\n]*)?\r?\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_PREFIX = b"HTTP/1."
#: The prober itself is short of something: no backend is to blame.
_OWN_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection closed",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "network unreachable",
    errno.ENOENT: "no such socket",
}


class Outcome(NamedTuple):
    """What a probe found: `reason` in words (may hold bytes of the backend's: escape before printing),
    `seconds` it took. `own_fault`: nothing was learned, the prober could not ask.
    """

    ok: bool
    reason: str
    seconds: float
    own_fault: bool = False


class Tls(NamedTuple):
    """How the backends of a pool are spoken to, and whom to ask for: "" is the host of their URL."""

    context: ssl.SSLContext
    server_name: str


def pools_tls(pools: Mapping[str, PoolConfig]) -> dict[str, Tls]:
    """The way of each pool that has TLS settings. Raises ConfigError."""
    return {
        name: Tls(client_context(pool.tls, f"pools.{name}.tls", ssl.SSLContext), pool.tls.server_name)
        for name, pool in pools.items()
        if pool.tls != UpstreamTls()
    }


class Target(NamedTuple):
    """Whom to probe and how, worked out once.

    `address` is None when `host` is a name that must be looked up, and `request` b"" for a probe that
    only connects.
    """

    host: str
    port: int
    address: Address | None
    tls: bool
    request: bytes
    codes: frozenset[int]
    status: str
    timeout: float
    #: With `tls`: how; None: without looking at the certificate.
    how: Tls | None = None


class _ProbeError(Exception):
    """The backend failed the probe; the message is the reason."""


def target(backend: Backend, policy: HealthPolicy, how: Tls | None = None) -> Target:
    """Return how `backend` is probed under `policy`, its TLS as `how` says.

    Raises ValueError when backend or policy cannot be used.
    """
    parts = urlsplit(backend.url)
    if parts.scheme == "http+unix":
        host, port, name = unquote(parts.netloc), 0, "localhost"
        address: Address | None = (socket.AF_UNIX, host)
    elif parts.scheme in DEFAULT_PORTS and parts.hostname:
        host, port = parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]
        address = literal(host, port)
        name = f"[{host}]" if ":" in host else host
        if port != DEFAULT_PORTS[parts.scheme]:
            name = f"{name}:{port}"
    else:
        raise ValueError(f"{backend.url!r} is no address to probe")
    request = b""
    if policy.type == "http":
        if not name.isascii() or not name.isprintable() or " " in name:
            raise ValueError(f"{backend.url!r}: its host cannot stand in a request")
        request = (
            f"GET {policy.path} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: lb-health/{__version__}\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii")
    codes = parse_status(policy.status)
    tls = parts.scheme == "https"
    return Target(host, port, address, tls, request, codes, policy.status, policy.timeout, how)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Prober:
    """Runs probes, any number at a time, each in the greenlet that calls `probe`."""

    def __init__(self, names: Names | None = None) -> None:
        self._names = names or Names()
        self._tls: ssl.SSLContext | None = None

    def probe(self, to: Target) -> Outcome:
        """Probe `to`, taking at most its timeout. Never raises because of what a backend does."""
        started = time.monotonic()
        doing = ["looking up the name"]
        with gevent.Timeout(to.timeout) as timer:
            try:
                reason = self._ask(to, doing)
                return Outcome(True, reason, time.monotonic() - started)
            except gevent.Timeout as fired:
                if fired is not timer:
                    raise
                reason = f"timeout after {to.timeout:g} s, {doing[0]}"
            except (_ProbeError, NameLookupError) as exc:
                reason = str(exc)
            except ssl.SSLCertVerificationError as exc:
                reason = f"its certificate is not accepted: {exc.verify_message}"
            except ssl.SSLError as exc:
                reason = f"TLS failed: {exc.reason or exc}, {doing[0]}"
            except OSError as exc:
                number = exc.errno or 0
                reason = f"{_WORDS.get(number) or exc.strerror or exc}, {doing[0]}"
                if number in _OWN_FAULT:
                    return Outcome(False, os.strerror(number), time.monotonic() - started, own_fault=True)
        return Outcome(False, reason, time.monotonic() - started)

    def _ask(self, to: Target, doing: list[str]) -> str:
        if to.address:
            addresses: tuple[Address, ...] = (to.address,)
        else:
            # Half of the time for the name: the last known address deserves a try in the other half.
            addresses = self._names.addresses(to.host, to.port, to.timeout / 2)[:MOST_ADDRESSES]
        doing[0] = "connecting"
        sock = _connect(addresses, to.timeout)
        try:
            if not to.request:
                return "connected"
            if to.tls:
                doing[0] = "in the TLS handshake"
                if to.how is not None:
                    context, name = to.how.context, to.how.server_name or to.host
                else:
                    self._tls = context = self._tls or _context()
                    name = "" if to.address else to.host
                # The handshake apart, so that whatever ends it there is a socket to close.
                sock = context.wrap_socket(sock, server_hostname=name or None, do_handshake_on_connect=False)
                sock.do_handshake()
            doing[0] = "sending the request"
            sock.sendall(to.request)
            doing[0] = "waiting for the answer"
            code = _read_status(sock, doing)
        finally:
            sock.close()
        if code not in to.codes:
            raise _ProbeError(f"status {code}, expected {to.status}")
        return f"status {code}"


def _connect(addresses: tuple[Address, ...], timeout: float) -> socket.socket:
    """Connect to the first of `addresses` that takes it; each has an equal share of the time."""
    share = timeout / len(addresses) if len(addresses) > 1 else None
    for number, (family, address) in enumerate(addresses, 1):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(share)
            sock.connect(address)
            sock.settimeout(None)
        except OSError as exc:
            sock.close()
            if number == len(addresses) or exc.errno in _OWN_FAULT:
                raise
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise _ProbeError("no address to connect to")


def _read_status(sock: socket.socket, doing: list[str]) -> int:
    """Read one head, skipping interim ones (RFC 9110, section 15.2); return its status code."""
    data, total = b"", 0
    while True:
        line = _STATUS_LINE.match(data)
        if line is None and (b"\n" in data or not _PREFIX.startswith(data[:7])):
            raise _ProbeError(f"the answer is not HTTP/1: {data[:60]!r}")
        end = _HEAD_END.search(data) if line else None
        if line and end:
            code = int(line[1])
            if code >= 200 or code == 101:
                return code
            data = data[end.end() :]
            continue
        if total >= HEAD_LIMIT:
            raise _ProbeError(f"the head of the answer is longer than {HEAD_LIMIT} bytes")
        chunk = sock.recv(4096)
        if not chunk:
            raise _ProbeError(
                f"closed after {total} bytes, before the end of the head" if total else "closed unanswered"
            )
        data += chunk
        total += len(chunk)
        doing[0] = f"reading the head of the answer, {total} bytes so far"
