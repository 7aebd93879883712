"""The announcement of a server in the Redis store that it shares with other servers of its model.

Every server writes one field into a hash of the store: its namespace and what the namespace is made
of. ``doctor`` compares the fields and says why two servers share nothing.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import redis

from kserve_lmcache import __version__
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.redaction import redact_urls
from kserve_lmcache.tiers.redis import client as redis_client

if TYPE_CHECKING:
    from kserve_lmcache.engine.plan import OffloadPlan

logger = logging.getLogger(__name__)

Scalar = str | int | float | None
Client = redis.Redis | redis.RedisCluster

KEY_PREFIX = f"{redis_client.KEY_PREFIX}replicas:"
# A full store may evict the hash before its expiry time, so the server writes its field again.
RENEWAL_SECONDS = 600.0
_EXPIRY_SECONDS = 48 * 3600  # for a hash whose last server is gone
_PATIENCE = 3.0  # seconds for each answer of the store

# What two servers must have alike to share: what people call it, and what sets it.
INPUTS: Mapping[str, tuple[str, str]] = {
    "hash_seed": ("hash seed", "PYTHONHASHSEED"),
    "hash_algorithm": ("hash algorithm", "pre_caching_hash_algorithm"),
    "chunk_size": ("chunk size", "chunk_size"),
    "dtype": ("data type", "--dtype"),
    "quantization": ("quantization", "--quantization"),
    "kv_cache_dtype": ("data type of the KV cache", "--kv-cache-dtype"),
    "hf_config": ("model configuration", "--hf-overrides and image"),
    "max_model_len": ("longest request", "--max-model-len"),
    "device": ("device", "kind of device"),
    "block": ("layout of a block on the CPU", "kind of processor and --block-size"),
    "parallel": ("split into workers", "--tensor-parallel-size and --pipeline-parallel-size"),
    "draft": ("draft model", "--speculative-config"),
    "workers": ("number of workers", "--tensor-parallel-size"),
    "namespace": ("namespace", "version of kserve-lmcache"),
    "version": ("kserve-lmcache", ""),
}


class Difference(NamedTuple):
    """In what two servers differ: a name of :data:`INPUTS`, and the value of each."""

    name: str
    there: Scalar
    here: Scalar


@dataclass(frozen=True)
class Replica:
    """A server, or what is known of it before it starts.

    Attributes:
        inputs: what decides, with the model's content, whether it shares with another; all that
            is known of it.
        namespace: what comes of all inputs and the content; empty while one is not known.
        content: digest of the model's files; empty while it is not known.
        place: ``HOST:PORT``, by which the others call it; empty for none that starts.
        seen: Unix time in seconds of the last word from it.
        version: of this package.
    """

    inputs: Mapping[str, Scalar]
    namespace: str = ""
    content: str = ""
    place: str = ""
    seen: float = 0.0
    version: str = __version__

    def encode(self, now: float) -> str:
        """What it tells the others: JSON, with ``now`` as the time."""
        return json.dumps(
            {
                "time": int(now),
                "version": self.version,
                "namespace": self.namespace,
                "inputs": dict(self.inputs),
            }
        )

    def differences(self, other: Replica) -> tuple[Difference, ...]:
        """Why it shares nothing with ``other``, as far as both are known; empty when it does."""
        found = [
            Difference(name, other.inputs[name], value)
            for name, value in self.inputs.items()
            if name in other.inputs and other.inputs[name] != value
        ]
        if not found and self.namespace and other.namespace != self.namespace:
            found = [Difference("namespace", other.namespace, self.namespace)]
        if found and other.version != self.version:
            found.append(Difference("version", other.version, self.version))
        return tuple(found)


def decode(place: bytes, text: bytes) -> Replica | None:
    """What the server at ``place`` told; ``None`` when no server of ours wrote it."""
    try:
        record = json.loads(text)
        inputs, seen = dict(record["inputs"]), float(record["time"])
        namespace, version = str(record["namespace"]), str(record["version"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    known = all(value is None or isinstance(value, str | int | float) for value in inputs.values())
    if not known or not math.isfinite(seen):
        return None
    return Replica(
        inputs, namespace, place=place.decode(errors="replace"), seen=seen, version=version
    )


def key_of(own: Replica) -> str:
    """The key of the hash that holds the servers of one model's content."""
    return f"{KEY_PREFIX}{own.content[:16]}"


def announce(client: Client, own: Replica) -> None:
    """Write the server's field.

    Raises:
        redis.RedisError: the store does not take it.
    """
    client.hset(key_of(own), own.place, own.encode(time.time()))
    client.expire(key_of(own), _EXPIRY_SECONDS)


def replica_of(args: Namespace, offload: OffloadPlan) -> Replica | None:
    """This server as the others see it; ``None`` when it shares nothing."""
    identity = offload.identity
    if identity is None or offload.configuration.get("model_fingerprint") == "private":
        return None
    place = f"{socket.gethostname()}:{args.http_port}"  # in a pod the pod's name
    return Replica(identity.inputs, identity.namespace, identity.content, place=place)


def keep_announced(
    remote: Remote | None,
    own: Replica | None,
    offloads: Callable[[], bool],
    pause: float = RENEWAL_SECONDS,
) -> threading.Thread | None:
    """Announce ``own`` every ``pause`` seconds, in a thread, while ``offloads`` returns true.

    The checks at the start announce the server for the first time, and report what fails.

    Returns:
        The thread; ``None`` when no other server could see the announcement.
    """
    if remote is None or not remote.speaks_redis or own is None or not own.place:
        return None

    def run() -> None:
        while True:
            time.sleep(pause)
            if not offloads():
                return
            try:
                with redis_client.connect(remote, _PATIENCE) as client:
                    announce(client, own)
            except (redis.RedisError, OSError) as error:
                reason = redact_urls(str(error))
                logger.debug("This server is not announced to other servers: %s", reason)

    thread = threading.Thread(target=run, name="announcement", daemon=True)
    thread.start()
    return thread
