"""LMCache's own server, ``lm://``: one harmless request in its protocol.

The protocol is written out here because ``lmcache.v1.protocol`` imports torch; a test compares
the two.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time

from kserve_lmcache.config.stores import Address, Remote
from kserve_lmcache.doctor.check import Finding, failure, ok
from kserve_lmcache.doctor.network import show

NAME = "remote server"

# ClientMetaMessage: command, length, format, dtype, location, shape (4), key.
_REQUEST = struct.Struct("9i150s")
# ServerMetaMessage: code, length, format, dtype, shape (4), location.
_ANSWER = struct.Struct("9i")
_EXIST = 3
_FORMAT_KV_2LTD, _FLOAT16 = 1, 2
_FOUND, _NOT_FOUND = 200, 400


def request() -> bytes:
    """Whether a key exists that nobody can have stored."""
    key = f"doctor@1@0@{secrets.randbits(63):x}@half"
    return _REQUEST.pack(
        _EXIST, 0, _FORMAT_KV_2LTD, _FLOAT16, 0, 0, 0, 0, 0, key.encode().ljust(150)
    )


def lookup(remote: Remote, address: Address, patience: float) -> Finding:
    """Ask for a key as the engine does for every prompt."""
    deadline = time.monotonic() + patience
    fix = (
        "Look why the server hangs, or whether another service listens there "
        f"({remote.source}); start LMCache's by lmcache_server HOST PORT."
    )
    try:
        with socket.create_connection(address, patience) as client:
            client.sendall(request())
            answer = b""
            while len(answer) < _ANSWER.size:
                client.settimeout(max(0.001, deadline - time.monotonic()))
                part = client.recv(_ANSWER.size - len(answer))
                if not part:
                    return failure(NAME, f"{show(address)} closes the connection", fix)
                answer += part
    except TimeoutError:
        evidence = f"{show(address)} accepts connections and does not answer within {patience:g} s"
        return failure(NAME, evidence, fix)
    except OSError as error:
        return failure(NAME, f"{show(address)}: {error.strerror or error}", fix)
    if _ANSWER.unpack(answer)[0] not in (_FOUND, _NOT_FOUND):
        return failure(NAME, f"{show(address)} does not answer as LMCache's server does", fix)
    return ok(NAME, "LMCache's server answers lookups; it keeps everything, without a limit")
