"""Whether the servers of one model that use one Redis store share their entries.

Servers whose namespaces differ never find each other's entries. This is right, and looks like a
cache that does not work. The check compares the announcements of the servers
(:mod:`kserve_lmcache.server.announcement`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import redis
from redis.exceptions import NoPermissionError

from kserve_lmcache.doctor.check import Finding, Status, ok, skipped, warning, within
from kserve_lmcache.doctor.connection import CheckedStore
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.doctor.model_files import files_of
from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity import fingerprint_cache
from kserve_lmcache.identity.fingerprint import fingerprint
from kserve_lmcache.server import announcement
from kserve_lmcache.server.announcement import INPUTS, Replica, Scalar
from kserve_lmcache.tiers.redis import client as redis_client

_FRESH_SECONDS = 24 * 3600
_MAX_NAMED = 3
_MAX_LENGTH = 64


class Difference(NamedTuple):
    """An input in which two servers differ, and the value of each."""

    name: str
    there: Scalar
    here: Scalar


def replicas(store: CheckedStore) -> Finding:
    """Announces this server, if it is one, and compares it with all that are announced."""
    own = _own(store.context)
    if isinstance(own, Finding):
        return own
    findings, now = [], time.time()

    @contextmanager
    def reported(problem: str) -> Iterator[None]:
        """Continues after an error: a user who may not write may still read."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            fix = "Look at the log of the server; sharing itself does not depend on it."
            if isinstance(error, NoPermissionError):
                keys = f"~{announcement.KEY_PREFIX}*"
                fix = f"Allow it: ACL SETUSER … {keys} +hset +hgetall +hdel +expire."
            findings.append(warning(f"{problem}: {error}", fix))

    with (
        reported("other servers of this model cannot be seen"),
        redis_client.connect(store.remote, store.timeout) as client,
    ):
        if own.place:
            # First, so that one of two servers that start at once sees the other.
            with reported("this server cannot be announced to others"):
                announcement.announce(client, own)
        found = announcement.announced(client, own)
        stale = [each for each in found if abs(now - each.seen) >= _FRESH_SECONDS]
        if own.place and stale:
            with reported("servers that have ended cannot be deleted"):
                announcement.withdraw(client, stale, own)
        others = [each for each in found if each not in stale and each.place != own.place]
        findings.append(judge(own, others, now))
    # Other servers have written parts of the texts.
    return Finding(
        Status.WARNING if any(each.fix for each in findings) else Status.OK,
        store.quote("; ".join(each.evidence for each in findings)),
        store.quote(" ".join(dict.fromkeys(each.fix for each in findings if each.fix))),
    )


def _own(context: Context) -> Replica | Finding:
    """Returns this server with the content of its model, or why it cannot be compared."""
    own, name, how = context.replica, context.model, context.model_fingerprint
    if how == "private":
        return skipped("model_fingerprint is private: nothing is shared")
    if own is None:
        return skipped("needs configuration")
    if own.content:
        return own
    if not name:
        return skipped("no model is given, and those of one model are compared")
    if how == "full":
        return skipped("model_fingerprint is full, which takes long: only a server compares")
    files = files_of(context)
    if files is None:
        return skipped(f"{name} is not on this machine: a server compares when it has fetched it")
    directory = fingerprint_cache.directory(context.environ)
    try:
        found = within(context.timeout, lambda: fingerprint(files, cache_directory=directory))
    except TimeoutError:
        return skipped(f"the model's files could not be read within {context.timeout:g} s")
    except IdentityError as error:
        return skipped(context.quote(error))
    return replace(own, content=found.digest)


def judge(own: Replica, others: Sequence[Replica], now: float) -> Finding:
    """Compares servers of the same content with ``own``, and with the one that was seen last."""
    kind = f"{' other' if own.place else ''} server{'s' * (len(others) != 1)}"
    count = f"{len(others) or 'no'}{kind} of this model in the last {_FRESH_SECONDS // 3600} h"
    if not others:
        return ok(count)
    newest = max(others, key=lambda each: each.seen)
    for one, start, here in (
        (own, "nothing is shared with", "here"),
        (newest, f"{_name(newest, now)} shares nothing with", f"at {_short(newest.place)}"),
    ):
        unlike: dict[tuple[Difference, ...], list[Replica]] = {}
        for other in others:
            unlike.setdefault(differences(one, other), []).append(other)
        alike = unlike.pop((), [])
        if unlike:
            groups = [
                f"{start} {_names(group, now)}: {', '.join(_tell(each, here) for each in found)}"
                for found, group in list(unlike.items())[:_MAX_NAMED]
            ]
            if more := sum(map(len, list(unlike.values())[_MAX_NAMED:])):
                groups.append(f"nor with {more} more")
            if alike:
                groups.append(f"{len(alike)} of {len(others)} differ in nothing that was compared")
            settings = dict.fromkeys(_labels(each.name)[1] for found in unlike for each in found)
            same = " and ".join(filter(None, settings))
            fix = f"Give all of them the same {same}, unless they are meant to differ."
            return warning("; ".join(groups), fix)
    known = " and ".join(_labels(name)[0] for name in own.inputs)
    alike_in = "" if own.namespace else f", here too in {known}"
    return ok(f"{count}, all alike{alike_in}: {_names(others, now)}")


def differences(one: Replica, other: Replica) -> tuple[Difference, ...]:
    """Returns why two servers share nothing, as far as both are known; empty when they share."""
    found = [
        Difference(name, other.inputs[name], value)
        for name, value in one.inputs.items()
        if name in other.inputs and other.inputs[name] != value
    ]
    if not found and one.namespace and other.namespace != one.namespace:
        found = [Difference("namespace", other.namespace, one.namespace)]
    if found and other.version != one.version:
        found.append(Difference("version", other.version, one.version))
    return tuple(found)


def _tell(each: Difference, here: str) -> str:
    there, own = ("none" if v is None else _short(str(v)) for v in (each.there, each.here))
    return f"{_labels(each.name)[0]} {there} there and {own} {here}"


def _labels(name: str) -> tuple[str, str]:
    return INPUTS.get(name, (_short(name), _short(name)))


def _names(group: Iterable[Replica], now: float) -> str:
    """Returns the servers that were seen last, and how many more there are."""
    newest = [_name(each, now) for each in sorted(group, key=lambda each: -each.seen)]
    more = [f"{len(newest) - _MAX_NAMED} more"] if len(newest) > _MAX_NAMED else []
    return " and ".join(newest[:_MAX_NAMED] + more)


def _name(replica: Replica, now: float) -> str:
    seconds = max(0.0, now - replica.seen)
    unit, length = next(
        (each for each in (("h", 3600), ("min", 60)) if seconds >= 2 * each[1]), ("s", 1)
    )
    return f"{_short(replica.place)} ({seconds // length:.0f} {unit} ago)"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"
