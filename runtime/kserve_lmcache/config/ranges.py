"""The numbers that each key may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from kserve_lmcache.config import keys
from kserve_lmcache.config.values import is_size


class Range(NamedTuple):
    """The numbers that a key may have, in words and as a test."""

    text: str
    contains: Callable[[float], bool]


_LONGEST_TIMEOUT = 60.0  # seconds; a longer timeout is no deadline
_POSITIVE = Range("greater than 0", lambda number: number > 0)
_NOT_NEGATIVE = Range("0 or greater", lambda number: number >= 0)
_TIMEOUT = Range(
    f"greater than 0 and at most {_LONGEST_TIMEOUT:g} seconds",
    lambda number: 0 < number <= _LONGEST_TIMEOUT,
)
_SIZE = Range("a size in GB, for example 2.0 or 512Mi", lambda number: 0 <= number < math.inf)
_POSITIVE_SIZE = Range(
    "a size in GB greater than 0, for example 2.0 or 512Mi", lambda number: 0 < number < math.inf
)
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("chunk_size", "blocking_timeout_secs", "lookup_timeout_ms"), _POSITIVE),
    **dict.fromkeys(("max_concurrent_requests", "request_timeout"), _POSITIVE),
    "body_timeout": _POSITIVE,
    "termination_grace_period": _POSITIVE,
    **dict.fromkeys(("drain_delay", "drain_timeout", "remote_ttl"), _NOT_NEGATIVE),
    "ephemeral_storage": _NOT_NEGATIVE,
    **dict.fromkeys(("remote_connect_timeout", "remote_lookup_timeout"), _TIMEOUT),
    **dict.fromkeys(("remote_load_timeout", "remote_write_timeout"), _TIMEOUT),
    **dict.fromkeys(("max_local_cpu_size", "remote_queue_size", "max_body_size"), _POSITIVE_SIZE),
    **dict.fromkeys(("tenant_local_quota_size", "tenant_remote_quota_size"), _POSITIVE_SIZE),
}


def of(name: str) -> Range | None:
    """The range of the key ``name``. A size of any key is finite. None for any number."""
    return _RANGES.get(name) or (_SIZE if is_size(keys.table()[name]) else None)
