"""Certificates for tests, made with openssl: an authority, and what it signs."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.need import need_binary


class Pair(NamedTuple):
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path

    def env(self) -> dict[str, str]:
        """The settings of a data listener that shows it."""
        return {"LB_TLS_CERTIFICATE": str(self.certificate), "LB_TLS_KEY": str(self.key)}

    def server(self, client_ca: Path | None = None) -> ssl.SSLContext:
        """The context of a server that shows it, and asks for a client's if `client_ca` is given."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class Authority:
    """One that signs; its own certificate is `ca`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self._openssl = need_binary("openssl", "openssl")
        self.ca, self._key = self._folder / "ca.pem", self._folder / "ca.key"
        self._run(
            *("req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.ca),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
        )

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run([self._openssl, *arguments], check=True, capture_output=True)

    def issue(self, name: str, *alternatives: str) -> Pair:
        """A certificate for `name`, valid for `alternatives` such as `DNS:a.example` and `IP:127.0.0.1`."""
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        self._run(
            *("req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt"),
            *("ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"),
            *("-keyout", pair.key, "-out", pair.certificate, "-CA", self.ca, "-CAkey", self._key),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *(("-addext", f"subjectAltName={','.join(alternatives)}") if alternatives else ()),
        )
        return pair

    def encrypted(self, pair: Pair) -> Path:
        """The same key with a passphrase."""
        path = pair.key.with_suffix(".locked")
        self._run("ec", "-in", pair.key, "-out", path, "-aes256", "-passout", "pass:secret")
        return path

    def trust(self) -> ssl.SSLContext:
        """The context of a client that trusts it."""
        return ssl.create_default_context(cafile=str(self.ca))
