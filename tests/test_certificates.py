"""Contexts from files; what cannot be used is one line that names the setting and the file."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from lb.certificates import client_context, client_contexts, problems, server_context
from lb.errors import ConfigError
from lb.settings import PoolConfig, Settings, TlsSettings, UpstreamTls
from tests.support.certificates import Authority, Pair


def settings(certificate: Path, key: Path, **more: object) -> TlsSettings:
    return TlsSettings(str(certificate), str(key), **more)  # type: ignore[arg-type]


def test_without_a_certificate_there_is_no_tls() -> None:
    assert server_context(TlsSettings()) is None


@pytest.mark.parametrize(
    ("version", "least"), [("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3)]
)
def test_the_context_of_the_data_listener(server_pair: Pair, version: str, least: ssl.TLSVersion) -> None:
    context = server_context(settings(*server_pair, min_version=version))
    assert context is not None
    assert context.minimum_version == least
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF


def test_one_file_may_hold_both(server_pair: Pair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(server_pair.certificate.read_bytes() + server_pair.key.read_bytes())
    assert server_context(settings(both, both)) is not None


def test_what_cannot_be_used_is_named(server_pair: Pair, authority: Authority, tmp_path: Path) -> None:
    certificate, key = server_pair
    other = authority.issue("other").key
    garbage = tmp_path / "garbage"
    garbage.write_bytes(os.urandom(100))
    closed = tmp_path / "closed"
    closed.mkdir()
    locked = authority.encrypted(server_pair)
    for made, words in [
        (
            settings(tmp_path / "none", key),
            rf"tls\.certificate: {tmp_path}/none cannot be read: No such file",
        ),
        (
            settings(certificate, tmp_path / "none"),
            rf"tls\.key: {tmp_path}/none cannot be read: No such file",
        ),
        (settings(certificate, closed), rf"tls\.key: {closed} cannot be read: Is a directory"),
        (settings(certificate, other), rf"tls\.key: {other} is not the key of the certificate {certificate}"),
        (settings(certificate, locked), rf"tls\.key: {locked} is encrypted"),
        (settings(garbage, key), rf"tls: no certificate and key in PEM in {garbage} and {key}"),
        (
            settings(certificate, garbage),
            rf"tls: no certificate and key in PEM in {certificate} and {garbage}",
        ),
    ]:
        with pytest.raises(ConfigError, match=f"^{words}") as raised:
            server_context(made)
        assert "\n" not in str(raised.value)


# Towards backends.


def test_whom_a_pool_trusts(authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca = authority.ca
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    own = client_context(UpstreamTls(ca=str(ca)), "tls").get_ca_certs()
    assert len(own) == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    assert client_context(UpstreamTls(), "tls").get_ca_certs() == own
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert len(client_context(UpstreamTls(), "tls").get_ca_certs()) > 1  # those that come with requests
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca))
    assert client_context(UpstreamTls(), "tls").get_ca_certs() == own
    blind = client_context(UpstreamTls(verify=False), "tls")
    assert (blind.verify_mode, blind.check_hostname) == (ssl.CERT_NONE, False)


def test_a_client_context_is_strict(authority: Authority) -> None:
    context = client_context(UpstreamTls(ca=str(authority.ca)), "tls")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF


def test_pools_with_the_same_settings_share_a_context(authority: Authority) -> None:
    one, two = UpstreamTls(ca=str(authority.ca)), UpstreamTls(ca=str(authority.ca), server_name="a.example")
    made = client_contexts(
        {"a": PoolConfig(tls=one), "b": PoolConfig(tls=two), "c": PoolConfig(tls=UpstreamTls(verify=False))}
    )
    assert made["a"] is made["b"]
    assert made["a"] is not made["c"]


def test_what_is_wrong_with_all_of_them(server_pair: Pair, tmp_path: Path) -> None:
    certificate, key = server_pair
    none, empty = str(tmp_path / "none"), tmp_path / "empty"
    empty.write_bytes(b"")
    pools = {
        "a": PoolConfig(tls=UpstreamTls(ca=none)),
        "b": PoolConfig(tls=UpstreamTls(ca=str(empty))),
        "c": PoolConfig(tls=UpstreamTls(certificate=str(certificate), key=none)),
        "d": PoolConfig(tls=UpstreamTls(certificate=str(certificate), key=str(key))),
    }
    found = problems(Settings(tls=settings(empty, key), pools=pools))
    assert [line.split(": ")[0] for line in found] == [
        "tls",
        "pools.a.tls.ca",
        "pools.b.tls.ca",
        "pools.c.tls.key",
    ]
    with pytest.raises(ConfigError, match=r"pools\.a\.tls\.ca: .*none cannot be read"):
        client_contexts(pools)
