"""The encrypted connection: the server's certificate, and whether the server demands ours."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from kserve_lmcache.config.store_url import Address
from kserve_lmcache.doctor.check import Finding, failure, ok, reason_of, warning
from kserve_lmcache.doctor.connection import CheckedStore, show
from kserve_lmcache.tiers.redis.client import tls_context

_MIN_DAYS = 14
_UNENCRYPTED = {"rediss": "redis", "valkeys": "valkey", "rediss-sentinel": "redis-sentinel"}

# OpenSSL's X509_V_ERR_*, https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNTRUSTED = (18, 19, 20, 21)
_WRONG_NAME = (62, 64)
# X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for.
_ANY_TIME = ssl.VerifyFlags(0x200000)

Certificate = dict[str, Any]


class _RefusedLaterError(OSError):
    """The server ended the connection after the handshake."""


def encryption(store: CheckedStore) -> Finding:
    """Shakes hands as redis-py does."""
    remote, address = store.remote, store.reached[0]
    try:
        context = tls_context(remote)
    except OSError as error:
        files = " or ".join(filter(None, (remote.ca_file, remote.cert_file, remote.key_file)))
        return failure(
            f"{files} cannot be used: {store.quote(reason_of(error))}",
            "Give PEM files: the authorities in remote_ca_file, our own certificate and its key "
            "in remote_cert_file and remote_key_file.",
        )
    try:
        certificate, version = _shake_hands(context, address, store.timeout)
    except ssl.SSLCertVerificationError as error:
        return _certificate_refused(store, context, error)
    except OSError as error:
        return _handshake_failed(store, error)
    days = int(ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // (24 * 3600)
    issuer = dict(part for group in certificate.get("issuer", ()) for part in group)
    authority = issuer.get("commonName") or issuer.get("organizationName") or "an unnamed authority"
    evidence = f"{version}, certificate for {_names(certificate)} by {authority}, {days} days left"
    if days < _MIN_DAYS:
        fix = "Renew the server's certificate: nothing is shared after the certificate has expired."
        return warning(evidence, fix)
    return ok(evidence)


def speaks_tls(address: Address, timeout: float) -> bool:
    """Whether the server shakes hands, with any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        _shake_hands(context, address, timeout)
    except OSError as error:
        return isinstance(error, _RefusedLaterError)
    return True


def _shake_hands(
    context: ssl.SSLContext, address: Address, timeout: float
) -> tuple[Certificate, str]:
    """Returns the server's certificate and the version of TLS."""
    with (
        socket.create_connection(address, timeout) as plain,
        context.wrap_socket(plain, server_hostname=address[0]) as channel,
    ):
        result = channel.getpeercert() or {}, channel.version() or "TLS"
        # In TLS 1.3 a server refuses our certificate, or the lack of one, after the handshake.
        try:
            channel.sendall(b"PING\r\n")
            channel.recv(1)
        except TimeoutError:
            pass  # for the check of the login
        except OSError as error:
            raise _RefusedLaterError from error
        return result


def _certificate_refused(
    store: CheckedStore, context: ssl.SSLContext, error: ssl.SSLCertVerificationError
) -> Finding:
    """Our side refuses the server's certificate."""
    code, address = error.verify_code, store.reached[0]
    if code in _UNTRUSTED:
        trusted = store.remote.ca_file or "the system's authorities (no remote_ca_file is set)"
        return failure(
            f"the certificate is signed by none of {trusted}: {error.verify_message}",
            "Set remote_ca_file to the PEM file of the authority that signed it.",
        )
    # Read a certificate with a wrong name or time, to quote from it.
    context.check_hostname = False
    context.verify_flags |= _ANY_TIME
    try:
        certificate, _ = _shake_hands(context, address, store.timeout)
    except OSError:
        certificate = {}
    if code in _WRONG_NAME:
        fix = "Use one of its names in remote_url, or issue a certificate for this one."
        return failure(f"the certificate is for {_names(certificate)}, not for {address[0]}", fix)
    if code == _NOT_YET_VALID:
        return failure(
            f"the certificate is valid only from {certificate.get('notBefore', '')}",
            "Set the clock of this machine, or of the one that issues certificates.",
        )
    problem = f"is refused: {error.verify_message}"
    if code == _EXPIRED:
        problem = f"expired {certificate.get('notAfter', '')}"
    return failure(f"the certificate {problem}", "Renew the server's certificate.")


def _handshake_failed(store: CheckedStore, error: OSError) -> Finding:
    """The server refuses our certificate, does not speak TLS, or hangs."""
    address, remote = store.reached[0], store.remote
    place, own = show(address), remote.cert_file or "none was given"
    # Redis without TLS takes the handshake for the start of a command, and waits for its end.
    if _speaks_plainly(address, store.timeout):
        return failure(
            f"{place} does not speak TLS",
            f"Write {_UNENCRYPTED[remote.scheme]}:// in {store.setting}, or give the server a "
            "tls-port.",
        )
    if isinstance(error, TimeoutError):
        return store.no_answer(place, "does not shake hands")
    fix = "Set remote_cert_file and remote_key_file to a certificate that the server trusts"
    reason = getattr(error.__cause__ or error, "reason", None) or ""
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return failure(f"{place} demands a certificate of ours that it trusts ({own})", f"{fix}.")
    if isinstance(error, _RefusedLaterError):
        return failure(
            f"{place} breaks off after the handshake, as a server does that demands a certificate "
            f"of ours ({own})",
            f"{fix}; its log may name another reason.",
        )
    fix = "Let the server allow TLS 1.2 or 1.3, and see whether it has TLS on this port at all."
    return failure(f"{place} breaks off the handshake: {store.quote(reason_of(error))}", fix)


def _speaks_plainly(address: Address, timeout: float) -> bool:
    """Whether the server answers as Redis does, without TLS."""
    try:
        with socket.create_connection(address, timeout) as client:
            client.settimeout(timeout / 3)
            client.sendall(b"PING\r\n")
            return client.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _names(certificate: Certificate) -> str:
    return ", ".join(name for _, name in certificate.get("subjectAltName", ())) or "no name"
