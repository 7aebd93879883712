"""Stores one value as large as a chunk, reads it back and deletes it."""

from __future__ import annotations

import os
import time
import uuid

import redis
from redis.exceptions import NoPermissionError, OutOfMemoryError

from kserve_lmcache.doctor.check import Finding, failure, ok, size, warning
from kserve_lmcache.doctor.redis_session import Session
from kserve_lmcache.tiers.redis import client as redis_client

NAME = "remote round trip"

_FIX_LOG = "Look at the log of the server."

KEY_PREFIX = f"{redis_client.KEY_PREFIX}doctor:"
# Should nobody come to delete it.
_TTL_MILLISECONDS = 60_000
# A chunk takes longer than the answer to a question.
_PATIENCE = 2


def round_trip(session: Session) -> Finding:
    """The proof: what the cache does all day, once."""
    key = f"{KEY_PREFIX}{uuid.uuid4().hex}"
    value = os.urandom(session.value_bytes)
    patience = _PATIENCE * session.patience
    try:
        client = redis_client.connect(session.remote, patience)
    except redis.RedisError as error:
        return failure(NAME, f"no connection: {session.said(error)}", _FIX_LOG)
    with client:
        try:
            client.get(key)  # connects and logs in, which is not to be measured
            start = time.perf_counter()
            client.set(key, value, px=_TTL_MILLISECONDS)
            stored = time.perf_counter()
            answer = client.get(key)
            end = time.perf_counter()
        except redis.RedisError as error:
            return _failed(session, error, patience)
        leftover = _delete(client, key)
    if answer is None:
        return failure(
            NAME,
            f"a value of {size(len(value))} was gone when it was read back",
            "Raise maxmemory on the server: it evicts at once what it has just stored.",
        )
    if answer != value:
        return failure(
            NAME,
            f"a value of {size(len(value))} came back changed",
            "Do not use this server, nor a proxy before it: it damages what it keeps.",
        )
    speed = f"written at {_speed(value, stored - start)}, read at {_speed(value, end - stored)}"
    evidence = f"{size(len(value))} {speed}"
    if leftover:
        return warning(
            NAME,
            f"{evidence}, but not deleted ({leftover}); it expires in a minute",
            "Allow this user to delete: ACL SETUSER … +del.",
        )
    return ok(NAME, evidence)


def _failed(session: Session, error: redis.RedisError, patience: float) -> Finding:
    amount = size(session.value_bytes)
    if isinstance(error, redis.TimeoutError):
        return failure(
            NAME,
            f"{amount} could not be written and read within {patience:g} s each",
            "Look at the load of the server and the speed of the network.",
        )
    if isinstance(error, NoPermissionError):
        return failure(
            NAME,
            session.said(error),
            "Allow this user to keep a cache: ACL SETUSER … ~* +get +set +exists +del.",
        )
    if isinstance(error, OutOfMemoryError):
        return failure(
            NAME,
            f"{amount} could not be written: the server is full",
            "Raise maxmemory on the server, and let it evict: maxmemory-policy allkeys-lru or "
            "allkeys-lfu.",
        )
    said = session.said(error)
    return failure(NAME, f"{amount} could not be written and read: {said}", _FIX_LOG)


def _delete(client: redis.Redis | redis.RedisCluster, key: str) -> str:
    """Why the value is still there; empty when it is not."""
    try:
        client.delete(key)
    except redis.RedisError as error:
        return type(error).__name__
    return ""


def _speed(value: bytes, seconds: float) -> str:
    return f"{len(value) / 1e6 / max(seconds, 1e-9):.0f} MB/s"
