"""A rule about one key, and the kinds of rules of which there are several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kserve_lmcache.config import keys, store_url
from kserve_lmcache.config.configuration import Configuration, show
from kserve_lmcache.config.stores import REDIS_SCHEMES, SENTINEL_SCHEMES, TLS_SCHEMES
from kserve_lmcache.errors import Problem


@dataclass(frozen=True)
class Context:
    """A configuration, and the device on which the engine computes (``cpu``, ``cuda``, …)."""

    configuration: Configuration
    device: str

    def __getitem__(self, name: str) -> Any:
        """The value in force. None for a key that the installed LMCache does not have."""
        return self.configuration.get(name) if name in keys.table() else None

    def is_set(self, name: str) -> bool:
        """Whether a source sets the key."""
        return name in self.configuration.values

    def scheme(self) -> str:
        """The scheme of ``remote_url``. Empty without a URL, and for text that is no URL."""
        return store_url.scheme_of(self["remote_url"] or "")

    def problem(self, name: str, message: str, fix: str) -> Problem:
        """A problem of the key ``name``."""
        return Problem(f"{name} {message}", self.configuration.source(name), fix)


Check = Callable[[Context], Iterator[Problem]]


@dataclass(frozen=True)
class Rule:
    """A rule about one key.

    Attributes:
        key: the key that has the problem.
        is_broken: whether a configuration breaks the rule. The result is used as a boolean.
        message: what is wrong, after the key's name. ``{value}`` is the key's value.
        fix: what the user has to do. By default to remove the key.
    """

    key: str
    is_broken: Callable[[Context], Any]
    message: str
    fix: str = "Remove {key}."

    def __call__(self, context: Context) -> Iterator[Problem]:
        """The problem, if the configuration breaks the rule."""
        if self.is_broken(context):
            message = self.message.format(value=show(self.key, context[self.key]))
            yield context.problem(self.key, message, self.fix.format(key=self.key))


def forbidden(key: str, message: str) -> Rule:
    """A key that must not be set."""
    return Rule(key, lambda c: c[key], message)


def conflict(key: str, other: str, reason: str) -> Rule:
    """Two keys of which one must go."""
    message = f"does not work together with {other}: {reason}"
    return Rule(key, lambda c: c[key] and c[other], message, f"Remove {key} or {other}.")


def needs(key: str, other: str) -> Rule:
    """A key that does nothing without another."""
    message = f"has no effect without {other}"
    return Rule(key, lambda c: c[key] and not c[other], message, f"Set {other}, or remove {key}.")


def not_on_cpu(key: str) -> Rule:
    """A key for other devices."""
    return Rule(
        key, lambda c: c.device == "cpu" and c.is_set(key) and c[key], "does not work on a CPU"
    )


def needs_lmcaches_copy(key: str) -> Rule:
    """A key of LMCache's own copy."""
    return Rule(
        key,
        lambda c: c.is_set(key) and c[key] and c["copy"] != "lmcache",
        "does not work with copy=blocks, which copies whole blocks of all layers",
    )


def redis_only(key: str) -> Rule:
    """A key for Redis and Valkey."""
    return Rule(
        key,
        lambda c: c[key] and c.scheme() not in ("", *REDIS_SCHEMES),
        "is for Redis and Valkey, but remote_url names another store",
    )


def tls_only(key: str) -> Rule:
    """A key for schemes with TLS."""
    return Rule(
        key,
        lambda c: c[key] and c.scheme() in set(REDIS_SCHEMES) - set(TLS_SCHEMES),
        "is for TLS, but remote_url has a scheme without TLS",
        "Use rediss:// or valkeys://.",
    )


def sentinels_only(key: str) -> Rule:
    """A key for schemes of sentinels."""
    return Rule(
        key,
        lambda c: c[key] and c.scheme() in set(REDIS_SCHEMES) - set(SENTINEL_SCHEMES),
        "is for sentinels, but remote_url names none",
    )
