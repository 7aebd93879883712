"""A server as one of several of the same model: what it tells the others, and how two differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kserve_lmcache import __version__

Scalar = str | int | float | None

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
