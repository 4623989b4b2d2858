"""Certificates and keys as TLS contexts: made once, before the workers are forked.

Whatever cannot be used is a ConfigError of one line that names the setting, the file and what is wrong.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from lb.errors import ConfigError
from lb.settings import Settings, TlsSettings


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


def problems(settings: Settings) -> list[str]:
    """What is wrong with the files that the settings name, a line each."""
    found = []
    try:
        server_context(settings.tls)
    except ConfigError as exc:
        found.append(str(exc))
    return found


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
