"""The announcement of a server in the Redis store that it shares with other servers of its model.

Each server writes one field of a hash: its namespace, and the inputs of the namespace. The check
``replicas`` of ``doctor`` compares the fields, and says why two servers share nothing.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from kserve_lmcache import __version__
from kserve_lmcache.config.stores import Remote
from kserve_lmcache.redaction import redact_text
from kserve_lmcache.tiers.redis import client as redis_client

if TYPE_CHECKING:
    from kserve_lmcache.engine.plan import OffloadPlan

logger = logging.getLogger(__name__)

Scalar = str | int | float | None
Client = redis.Redis | redis.RedisCluster

KEY_PREFIX = f"{redis_client.KEY_PREFIX}replicas:"
# A full store may evict the hash before its expiry time, so the server writes its field again.
RENEWAL_SECONDS = 600.0
_EXPIRY_SECONDS = 48 * 3600  # of a hash whose last server has ended
_TIMEOUT = 3.0  # seconds for each answer of the store

# The inputs of a namespace: the name for people, and the setting that decides the value.
INPUTS: Mapping[str, tuple[str, str]] = {
    "hash_seed": ("hash seed", "PYTHONHASHSEED"),
    "hash_algorithm": ("hash algorithm", "pre_caching_hash_algorithm"),
    "chunk_size": ("chunk size", "chunk_size"),
    "vllm": ("release of vLLM", "image"),
    "dtype": ("data type", "--dtype"),
    "quantization": ("quantization", "--quantization"),
    "kv_cache_dtype": ("data type of the KV cache", "--kv-cache-dtype"),
    "hf_config": ("model configuration", "--hf-overrides and image"),
    "max_model_len": ("longest request", "--max-model-len"),
    "device": ("device", "kind of device"),
    "copy": ("copy of the KV", "--copy"),
    "mode": ("mode", "--mode"),
    "pictures": ("preparation of pictures", "--mm-processor-kwargs and image"),
    "block": ("layout of a block", "kind of processor, --block-size and attention backend"),
    "parallel": ("split into workers", "--tensor-parallel-size and --pipeline-parallel-size"),
    "draft": ("draft model", "--speculative-config"),
    "workers": ("number of workers", "--tensor-parallel-size"),
    "namespace": ("namespace", "version of kserve-lmcache"),
    "version": ("kserve-lmcache", ""),
}


@dataclass(frozen=True)
class Replica:
    """A server, or what is known of a server that has not started.

    Attributes:
        inputs: the inputs of the namespace beside the model's content, as far as they are known.
        namespace: empty while an input or the content is not known.
        content: digest of the model's files; empty while it is not known.
        place: ``HOST:PORT``, the server's name for other servers; empty for no server.
        seen: Unix time of the announcement, in seconds.
        version: of this package.
    """

    inputs: Mapping[str, Scalar]
    namespace: str = ""
    content: str = ""
    place: str = ""
    seen: float = 0.0
    version: str = __version__

    @property
    def key(self) -> str:
        """The key of the hash that holds the servers of this content."""
        return f"{KEY_PREFIX}{self.content[:16]}"

    def encode(self, now: float) -> str:
        """Returns the announcement: JSON, with ``now`` as the time."""
        return json.dumps(
            {
                "time": int(now),
                "version": self.version,
                "namespace": self.namespace,
                "inputs": dict(self.inputs),
            }
        )


def decode(place: bytes, text: bytes) -> Replica | None:
    """Returns the server of an announcement; ``None`` when the text is no announcement."""
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


def replica_of(args: Namespace, offload: OffloadPlan) -> Replica | None:
    """Returns this server as other servers see it; ``None`` when it shares nothing."""
    identity = offload.identity
    if identity is None or offload.configuration.get("model_fingerprint") == "private":
        return None
    place = f"{socket.gethostname()}:{args.http_port}"  # in a pod the pod's name
    return Replica(identity.inputs, identity.namespace, identity.content, place=place)


def announce(client: Client, own: Replica) -> None:
    """Writes the server's field, and starts the expiry time of the hash again.

    Raises:
        redis.RedisError: the store refuses.
    """
    client.hset(own.key, own.place, own.encode(time.time()))
    client.expire(own.key, _EXPIRY_SECONDS)


def announced(client: Client, own: Replica) -> list[Replica]:
    """Returns all servers with the content of ``own``, which may be among them.

    Raises:
        redis.RedisError: the store refuses.
    """
    fields: Any = client.hgetall(own.key)
    found = (decode(place, text) for place, text in fields.items())
    return [each for each in found if each is not None]


def withdraw(client: Client, servers: Sequence[Replica], own: Replica) -> None:
    """Deletes the fields of servers with the content of ``own``.

    Raises:
        redis.RedisError: the store refuses.
    """
    client.hdel(own.key, *(each.place for each in servers))


def keep_announced(
    remote: Remote | None,
    own: Replica | None,
    offloads: Callable[[], bool],
    pause: float = RENEWAL_SECONDS,
) -> threading.Thread | None:
    """Announces the server every ``pause`` seconds, in a thread, while ``offloads`` returns true.

    The checks at the start of the server make the first announcement, and report its errors.

    Returns:
        The thread; ``None`` when no other server can see an announcement.
    """
    if remote is None or not remote.speaks_redis or own is None or not own.place:
        return None

    def run() -> None:
        while True:
            time.sleep(pause)
            if not offloads():
                return
            try:
                with redis_client.connect(remote, _TIMEOUT) as client:
                    announce(client, own)
            except (redis.RedisError, OSError) as error:
                reason = redact_text(str(error))
                logger.debug("This server is not announced to other servers: %s", reason)

    thread = threading.Thread(target=run, name="announcement", daemon=True)
    thread.start()
    return thread
