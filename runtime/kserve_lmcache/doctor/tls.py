"""The encrypted connection: what the server shows, and what it demands."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from kserve_lmcache.config.stores import Address, Remote
from kserve_lmcache.doctor.check import Finding, failure, foreign, ok, warning
from kserve_lmcache.doctor.network import show
from kserve_lmcache.tiers.redis.client import tls_context

NAME = "remote TLS"

_LEAST_DAYS = 14
_UNENCRYPTED = {"rediss": "redis", "valkeys": "valkey"}
_DAY_SECONDS = 86400

# OpenSSL's X509_V_ERR_*, https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNTRUSTED = (18, 19, 20, 21)
_WRONG_NAME = (62, 64)
# X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for.
_ANY_TIME = ssl.VerifyFlags(0x200000)


class _BrokenOffLater(OSError):
    """The server ended the connection after the handshake, with or without a reason."""


def encryption(remote: Remote, address: Address, patience: float) -> Finding:
    """Shake hands as redis-py would, and say what stands in the way."""
    try:
        context = tls_context(remote)
    except OSError as error:
        files = [file for file in (remote.ca_file, remote.cert_file, remote.key_file) if file]
        return failure(
            NAME,
            f"{' or '.join(files)} cannot be used: {foreign(error.strerror or error, remote)}",
            "Give PEM files: the authorities in remote_ca_file, our own certificate and its key "
            "in remote_cert_file and remote_key_file.",
        )
    try:
        certificate, version = _shake_hands(context, address, patience)
    except ssl.SSLCertVerificationError as error:
        return _refused(error, context, remote, address, patience)
    except OSError as error:
        # Redis without TLS takes the handshake for the start of a command, and waits for its end.
        if _speaks_plainly(address, patience):
            return failure(
                NAME,
                f"{show(address)} does not speak TLS",
                f"Write {_UNENCRYPTED[remote.scheme]}:// in remote_url ({remote.source}), or give "
                "the server a tls-port.",
            )
        return _broken(error, remote, address, patience)
    names = ", ".join(_names(certificate)) or "no name"
    days = _days_left(certificate)
    evidence = f"{version}, certificate for {names} by {_issuer(certificate)}, {days} days left"
    if days < _LEAST_DAYS:
        return warning(
            NAME, evidence, "Renew the server's certificate: once it expires nothing is shared."
        )
    return ok(NAME, evidence)


def speaks_tls(address: Address, patience: float) -> bool:
    """Whether the server shakes hands at all, whoever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(address, patience) as plain,
            context.wrap_socket(plain, server_hostname=address[0]),
        ):
            return True
    except OSError:
        return False


def _shake_hands(
    context: ssl.SSLContext, address: Address, patience: float
) -> tuple[dict[str, Any], str]:
    with (
        socket.create_connection(address, patience) as plain,
        context.wrap_socket(plain, server_hostname=address[0]) as channel,
    ):
        certificate, version = channel.getpeercert() or {}, channel.version() or "TLS"
        # In TLS 1.3 a server refuses our certificate, or the lack of one, after the handshake.
        try:
            channel.sendall(b"PING\r\n")
            channel.recv(1)
        except TimeoutError:
            pass  # whether it answers is for the next stage
        except OSError as error:
            raise _BrokenOffLater from error
        return certificate, version


def _refused(
    error: ssl.SSLCertVerificationError,
    context: ssl.SSLContext,
    remote: Remote,
    address: Address,
    patience: float,
) -> Finding:
    """We refuse the server's certificate."""
    renew = "Renew the server's certificate."
    if error.verify_code in _UNTRUSTED:
        trusted = remote.ca_file or "the system's authorities (no remote_ca_file is set)"
        return failure(
            NAME,
            f"the certificate is signed by none of {trusted}: {error.verify_message}",
            "Set remote_ca_file to the PEM file of the authority that signed it.",
        )
    certificate = _look_again(context, address, patience)
    if error.verify_code in _WRONG_NAME:
        names = ", ".join(_names(certificate)) or "no name"
        return failure(
            NAME,
            f"the certificate is for {names}, not for {address[0]}",
            "Use one of its names in remote_url, or issue a certificate for this one.",
        )
    if error.verify_code == _EXPIRED:
        return failure(NAME, f"the certificate expired {certificate.get('notAfter', '')}", renew)
    if error.verify_code == _NOT_YET_VALID:
        return failure(
            NAME,
            f"the certificate is valid only from {certificate.get('notBefore', '')}",
            "Set the clock of this machine, or of the one that issues certificates.",
        )
    return failure(NAME, f"the certificate is refused: {error.verify_message}", renew)


def _look_again(context: ssl.SSLContext, address: Address, patience: float) -> dict[str, Any]:
    """The certificate of a trusted authority whose name or time is wrong, to quote from it."""
    context.check_hostname = False
    context.verify_flags |= _ANY_TIME
    try:
        certificate, _ = _shake_hands(context, address, patience)
    except OSError:
        return {}
    return certificate


def _speaks_plainly(address: Address, patience: float) -> bool:
    """Whether the server answers as Redis does, password or not, without TLS."""
    try:
        with socket.create_connection(address, patience) as client:
            client.settimeout(patience / 3)
            client.sendall(b"PING\r\n")
            return client.recv(1) in (b"+", b"-")
    except OSError:
        return False


def _broken(error: OSError, remote: Remote, address: Address, patience: float) -> Finding:
    """The handshake came to no end."""
    if isinstance(error, TimeoutError):
        return failure(
            NAME,
            f"{show(address)} does not shake hands within {patience:g} s",
            f"Look why the server hangs, or whether another service listens there "
            f"({remote.source}).",
        )
    reason = getattr(error.__cause__ or error, "reason", None) or ""
    shown = remote.cert_file or "none was given"
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason:
        return failure(
            NAME,
            f"{show(address)} demands a certificate of ours that it trusts ({shown})",
            "Set remote_cert_file and remote_key_file to a certificate that the server trusts.",
        )
    if isinstance(error, _BrokenOffLater):
        return failure(
            NAME,
            f"{show(address)} breaks off after the handshake, as a server does that demands a "
            f"certificate of ours ({shown})",
            "Set remote_cert_file and remote_key_file to a certificate that the server trusts; "
            "its log may name another reason.",
        )
    return failure(
        NAME,
        f"{show(address)} breaks off the handshake: {foreign(error.strerror or error, remote)}",
        "Let the server allow TLS 1.2 or 1.3, and see whether it has TLS on this port at all.",
    )


def _names(certificate: dict[str, Any]) -> list[str]:
    return [str(name) for _, name in certificate.get("subjectAltName", ())]


def _issuer(certificate: dict[str, Any]) -> str:
    parts = dict(part for group in certificate.get("issuer", ()) for part in group)
    return str(parts.get("commonName") or parts.get("organizationName") or "an unnamed authority")


def _days_left(certificate: dict[str, Any]) -> int:
    end = ssl.cert_time_to_seconds(certificate["notAfter"])
    return int((end - time.time()) // _DAY_SECONDS)
