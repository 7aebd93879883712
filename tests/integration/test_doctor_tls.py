"""The doctor before TLS: a real Redis, real certificates, real handshakes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor.check import Finding, Status
from kserve_lmcache.tiers.redis import client as redis_client
from tests.support.doctor import (
    STORE_CHECKS,
    find,
    look_at,
    redis_remote,
    statuses,
    unchecked_after,
)
from tests.support.stores import Store, redis_server, sentinel, silent_server
from tests.support.tls import Authority, Certificate, tls_before

PASSWORD = "test-password-c0de"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    options = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    with redis_server(tmp_path_factory.mktemp("redis"), *options, password=PASSWORD) as store:
        yield store


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def encryption(
    store: Store, certificate: Certificate, ca_file: Path | None, host: str = "127.0.0.1"
) -> Finding:
    """What is found of a server that shows this certificate."""
    with tls_before(store.host, store.port, certificate) as port:
        findings = look_at(tls_remote(store, port, ca_file, host))
    finding = find(findings, "remote TLS")
    if finding.status is Status.FAILURE:
        unchecked_after(findings, "remote TLS")
    return finding


def tls_remote(
    store: Store, port: int, ca_file: Path | None, host: str = "127.0.0.1", **files: str
) -> Remote:
    return Remote(
        f"rediss://{host}:{port}",
        "the test",
        password=store.password,
        ca_file=str(ca_file) if ca_file else None,
        **files,
    )


def test_a_good_certificate(store: Store, authority: Authority) -> None:
    certificate = authority.issue("localhost", "127.0.0.1", days=90)
    with tls_before(store.host, store.port, certificate) as port:
        findings = look_at(tls_remote(store, port, authority.file))
    assert statuses(findings) == dict.fromkeys(
        (*STORE_CHECKS[:2], "remote TLS", *STORE_CHECKS[2:]), Status.OK
    )
    assert find(findings, "remote TLS").evidence == (
        "TLSv1.3, certificate for localhost, 127.0.0.1 by test authority, 89 days left"
    )


def test_a_certificate_about_to_expire(store: Store, authority: Authority) -> None:
    certificate = authority.issue("127.0.0.1", days=13.5)
    found = encryption(store, certificate, authority.file)
    assert found.status is Status.WARNING
    assert found.evidence.endswith("13 days left")
    assert "Renew the server's certificate" in found.fix


def test_an_expired_certificate(store: Store, authority: Authority) -> None:
    found = encryption(store, authority.issue("127.0.0.1", days=-2), authority.file)
    assert found.status is Status.FAILURE
    assert re.fullmatch(r"the certificate expired \w{3} +\d+ [\d:]+ \d{4} GMT", found.evidence)
    assert found.fix == "Renew the server's certificate."


def test_a_certificate_for_another_name(store: Store, authority: Authority) -> None:
    certificate = authority.issue("cache.example", "10.0.0.1")
    found = encryption(store, certificate, authority.file)
    assert found.status is Status.FAILURE
    assert found.evidence == "the certificate is for cache.example, 10.0.0.1, not for 127.0.0.1"
    assert "issue a certificate for this one" in found.fix
    found = encryption(store, certificate, authority.file, host="localhost")
    assert found.evidence == "the certificate is for cache.example, 10.0.0.1, not for localhost"


def test_a_certificate_of_an_unknown_authority(store: Store, authority: Authority) -> None:
    certificate = authority.issue("127.0.0.1")
    found = encryption(store, certificate, None)
    assert found.status is Status.FAILURE
    assert found.evidence.startswith(
        "the certificate is signed by none of the system's authorities (no remote_ca_file is set)"
    )
    assert "Set remote_ca_file" in found.fix


def test_a_certificate_of_another_authority(
    store: Store, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other authority")
    found = encryption(store, other.issue("127.0.0.1"), authority.file)
    assert found.status is Status.FAILURE
    assert found.evidence.startswith(f"the certificate is signed by none of {authority.file}")


def test_a_file_of_authorities_that_cannot_be_used(
    store: Store, authority: Authority, tmp_path: Path
) -> None:
    certificate = authority.issue("127.0.0.1")
    missing = tmp_path / "missing.pem"
    found = encryption(store, certificate, missing)
    assert found.status is Status.FAILURE
    assert found.evidence == f"{missing} cannot be used: No such file or directory"
    assert "Give PEM files" in found.fix
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    assert f"{empty} cannot be used" in encryption(store, certificate, empty).evidence


def test_a_server_that_demands_a_certificate(store: Store, authority: Authority) -> None:
    certificate, own = authority.issue("127.0.0.1"), authority.issue("us")
    with tls_before(store.host, store.port, certificate, authority.file) as port:
        without = look_at(tls_remote(store, port, authority.file))
        files = {"cert_file": str(own.cert_file), "key_file": str(own.key_file)}
        with_one = look_at(tls_remote(store, port, authority.file, **files))
    found = find(without, "remote TLS")
    assert found.status is Status.FAILURE
    # The server's reason is lost when it closes the connection before it has read all of ours.
    assert re.search(r" demands a certificate of ours .*\(none was given\)", found.evidence)
    assert "Set remote_cert_file and remote_key_file" in found.fix
    unchecked_after(without, "remote TLS")
    assert find(with_one, "remote round trip").status is Status.OK


def test_a_server_without_tls(store: Store, authority: Authority) -> None:
    findings = look_at(tls_remote(store, store.port, authority.file, store.host), timeout=3)
    found = find(findings, "remote TLS")
    assert found.status is Status.FAILURE
    assert found.evidence == f"{store.host}:{store.port} does not speak TLS"
    assert found.fix.startswith("Write redis:// in remote_url (the test)")


def test_tls_where_none_is_asked_for(store: Store, authority: Authority) -> None:
    with tls_before(store.host, store.port, authority.issue("127.0.0.1")) as port:
        findings = look_at(redis_remote(f"redis://127.0.0.1:{port}", password=PASSWORD))
    login = find(findings, "remote login")
    assert login.status is Status.FAILURE
    assert login.evidence == f"127.0.0.1:{port} speaks TLS"
    assert login.fix == "Write rediss:// in remote_url (the test)."


def test_a_server_that_never_shakes_hands(authority: Authority) -> None:
    start = time.monotonic()
    with silent_server() as (host, port):
        remote = Remote(f"rediss://{host}:{port}", "the test", ca_file=str(authority.file))
        found = find(look_at(remote, timeout=2), "remote TLS")
    assert time.monotonic() - start < 2.5
    assert found.status is Status.FAILURE
    assert found.evidence == f"{host}:{port} does not shake hands within 0.6 s"
    assert "Find out why the server hangs" in found.fix


def test_sentinels_and_their_primary_behind_tls(
    store: Store, authority: Authority, tmp_path: Path
) -> None:
    certificate = authority.issue("127.0.0.1", days=90)
    with (
        tls_before(store.host, store.port, certificate) as primary,
        sentinel(tmp_path, "cache", Store("127.0.0.1", primary), password="sentinel-pw-5") as plain,
        tls_before(plain.host, plain.port, certificate) as port,
    ):
        remote = Remote(
            f"rediss-sentinel://127.0.0.1:{port}/cache",
            "the test",
            password=PASSWORD,
            sentinel_password="sentinel-pw-5",
            ca_file=str(authority.file),
        )
        findings = look_at(remote)
        for name in ("remote TLS", "remote sentinel", "remote login", "remote round trip"):
            assert find(findings, name).status is Status.OK
        with redis_client.connect(remote, 5) as client:
            assert client.ping()
