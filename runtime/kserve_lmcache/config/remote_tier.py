"""The remote tier's settings: the default of the queue, its check, and the limits."""

from __future__ import annotations

from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.errors import Problem

GIB = 2**30

# Chunks wait for a write in the local tier, which they must not fill.
_QUEUE_GIB = 0.25
_QUEUE_SHARE = 0.25
_MAX_QUEUE_SHARE = 0.5


def uses_remote_tier(configuration: Configuration) -> bool:
    """Whether our connector, rather than LMCache's own, talks to the remote store."""
    url, connector = (configuration.get(name) for name in ("remote_url", "remote_connector"))
    return bool(url) and connector != "lmcache"


def default_queue_gib(configuration: Configuration) -> float:
    """Returns the default size of one tier's write queue, in GiB."""
    size: float = configuration.get("max_local_cpu_size")
    return round(min(_QUEUE_GIB, _QUEUE_SHARE * size), 4)


def complete(configuration: Configuration) -> None:
    """Sets the default of ``remote_queue_size``, and checks a value that was set."""
    if not uses_remote_tier(configuration):
        return
    name = "remote_queue_size"
    if configuration.get(name) is None:
        reason = f"default: {_QUEUE_GIB:g} GiB, at most {_QUEUE_SHARE:.0%} of max_local_cpu_size"
        configuration.values[name] = Value(default_queue_gib(configuration), reason)
    queue, local = configuration.get(name), configuration.get("max_local_cpu_size")
    if local > 0 and queue > _MAX_QUEUE_SHARE * local:
        problem = (
            f"{name} of {queue:g} GiB is more than {_MAX_QUEUE_SHARE:.0%} of max_local_cpu_size "
            f"({local:g} GiB), where queued chunks wait"
        )
        fix = f"Lower {name}, or leave it out."
        configuration.problems.append(Problem(problem, configuration.source(name), fix))


def limits_of(configuration: Configuration) -> TierLimits | None:
    """Returns the limits; ``None`` where our connector is not used."""
    if not uses_remote_tier(configuration):
        return None
    return TierLimits(
        connect=configuration.get("remote_connect_timeout"),
        lookup=configuration.get("remote_lookup_timeout"),
        load=configuration.get("remote_load_timeout"),
        write=configuration.get("remote_write_timeout"),
        queue_bytes=int(configuration.get("remote_queue_size") * GIB),
        ttl=configuration.get("remote_ttl"),
    )
