"""The remote tier's limits, from the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.tier_limits import Limits
from kserve_lmcache.errors import Problem

GIB = 2**30

# What waits to be written waits in the local tier, which it must not fill.
_QUEUE_GIB = 0.25
_QUEUE_SHARE = 0.25
_LARGEST_QUEUE_SHARE = 0.5


def uses_remote_tier(configuration: Configuration) -> bool:
    """Whether our connector, and not LMCache's own, talks to the remote store."""
    url, connector = (configuration.get(name) for name in ("remote_url", "remote_connector"))
    return bool(url) and connector != "lmcache"


def queue_gib(configuration: Configuration) -> float:
    """What may wait to be written to one tier, in GiB, unless something else is asked for."""
    size: float = configuration.get("max_local_cpu_size")
    return round(min(_QUEUE_GIB, _QUEUE_SHARE * size), 4)


def complete(configuration: Configuration) -> None:
    """Add the default that depends on the local tier's size, and what is wrong with another."""
    if not uses_remote_tier(configuration):
        return
    if configuration.get("remote_queue_size") is None:
        reason = f"default: {_QUEUE_GIB:g} GiB, at most {_QUEUE_SHARE:.0%} of max_local_cpu_size"
        configuration.values["remote_queue_size"] = Value(queue_gib(configuration), reason)
    configuration.problems += _problems(configuration)


def limits_of(configuration: Configuration) -> Limits | None:
    """The limits; ``None`` where our connector is not used."""
    if not uses_remote_tier(configuration):
        return None
    return Limits(
        connect=configuration.get("remote_connect_timeout"),
        lookup=configuration.get("remote_lookup_timeout"),
        load=configuration.get("remote_load_timeout"),
        write=configuration.get("remote_write_timeout"),
        queue_bytes=int(configuration.get("remote_queue_size") * GIB),
        ttl=configuration.get("remote_ttl"),
    )


def _problems(configuration: Configuration) -> Iterator[Problem]:
    queue, local = (configuration.get(name) for name in ("remote_queue_size", "max_local_cpu_size"))
    if local > 0 and queue > _LARGEST_QUEUE_SHARE * local:
        yield Problem(
            f"remote_queue_size of {queue:g} GiB is more than {_LARGEST_QUEUE_SHARE:.0%} of "
            f"max_local_cpu_size ({local:g} GiB), in which it waits",
            configuration.source("remote_queue_size"),
            "Ask for less, or leave it out.",
        )
