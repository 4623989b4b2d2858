"""Certificates and keys as TLS contexts: made once, before the workers are forked.

Whatever cannot be used is a ConfigError of one line that names the setting, the file and what is wrong.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import certifi
import msgspec

from lb.errors import ConfigError
from lb.settings import PoolConfig, Settings, TlsSettings, UpstreamTls


def alpn(settings: TlsSettings) -> list[str]:
    """The protocols that clients are offered (RFC 7301), the preferred one first."""
    return ["h2", "http/1.1"] if settings.http2 else ["http/1.1"]


def server_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """The context of the data listener, None when it is to speak plain HTTP. Raises ConfigError."""
    if not settings.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, settings.certificate, settings.key, "tls")
    context.minimum_version = (
        ssl.TLSVersion.TLSv1_3 if settings.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    )
    context.set_alpn_protocols(alpn(settings))
    return harden(context)


def client_context(
    settings: UpstreamTls, table: str, kind: type[ssl.SSLContext] | None = None
) -> ssl.SSLContext:
    """How a pool, whose settings are in `table`, speaks TLS to its backends. Raises ConfigError.

    `kind`: the class of the context, where it is not the one that `ssl` has.
    """
    context = (kind or ssl.SSLContext)(ssl.PROTOCOL_TLS_CLIENT)
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif settings.ca:
        _trust(context, f"{table}.ca", settings.ca)
    else:
        _trust_default(context)
    if settings.certificate:
        load_chain(context, settings.certificate, settings.key, table)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return harden(context)


def client_contexts(pools: Mapping[str, PoolConfig]) -> dict[str, ssl.SSLContext]:
    """The context of each pool; those with the same settings share one. Raises ConfigError."""
    made: dict[UpstreamTls, ssl.SSLContext] = {}
    found = {}
    for name, pool in pools.items():
        # The name asked for is no part of a context.
        key = msgspec.structs.replace(pool.tls, server_name="")
        if key not in made:
            made[key] = client_context(key, f"pools.{name}.tls")
        found[name] = made[key]
    return found


def _trust(context: ssl.SSLContext, setting: str, path: str) -> None:
    folder = Path(path).is_dir()
    if not folder:
        check_readable(setting, path)
    try:
        context.load_verify_locations(None if folder else path, path if folder else None)
    except ssl.SSLError as exc:
        raise ConfigError(f"{setting}: {path} holds no certificate in PEM ({exc.reason or exc})") from None


def _trust_default(context: ssl.SSLContext) -> None:
    """Trust whom `requests` is told to, else whom the system does, else those that come with `requests`."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            _trust(context, name, path)
            return
    known = ssl.get_default_verify_paths()
    if known.cafile or (known.capath and os.listdir(known.capath)):
        context.load_default_certs()
    else:
        context.load_verify_locations(certifi.where())


def problems(settings: Settings) -> list[str]:
    """What is wrong with the files that the settings name, a line each."""
    found = []
    checks: list[Callable[[], object]] = [lambda: server_context(settings.tls)]
    checks += [partial(client_contexts, {name: pool}) for name, pool in settings.pools.items()]
    for check in checks:
        try:
            check()
        except ConfigError as exc:
            found.append(str(exc))
    return list(dict.fromkeys(found))


def harden(context: ssl.SSLContext) -> ssl.SSLContext:
    """What every context here has: no renegotiation, no compression, and a cut stream is no end of one."""
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


def load_chain(context: ssl.SSLContext, certificate: str, key: str, table: str) -> None:
    """Let `context` show this certificate. Raises ConfigError, whose settings are in `table`."""
    for name, path in (("certificate", certificate), ("key", key)):
        check_readable(f"{table}.{name}", path)

    def refuse() -> NoReturn:
        raise ConfigError(f"{table}.key: {key} is encrypted; give it a key without a passphrase")

    try:
        context.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{table}.key: {key} is not the key of the certificate {certificate}") from None
        why = exc.reason or "unreadable"
        raise ConfigError(
            f"{table}: no certificate and key in PEM in {certificate} and {key} ({why})"
        ) from None


def check_readable(setting: str, path: str) -> None:
    """Can this file be read? Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ConfigError(f"{setting}: {path} cannot be read: {reason}") from None
