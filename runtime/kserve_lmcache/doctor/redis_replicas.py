"""The servers of one model that share a Redis store, and whether they do share.

Each announces itself there, beside the cache: one hash for each content of a model, with a field
for each server (:meth:`Replica.encode`). Servers whose namespaces differ never find each other's
entries, which is right and looks like a cache that does not work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from kserve_lmcache.doctor.check import Finding, Status, Subject, foreign, ok, skipped, warning
from kserve_lmcache.doctor.model_files import files_of
from kserve_lmcache.doctor.redis_session import Session
from kserve_lmcache.doctor.stage import within
from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity import fingerprint_cache
from kserve_lmcache.identity.fingerprint import fingerprint
from kserve_lmcache.server.announcement import (
    INPUTS,
    KEY_PREFIX,
    Client,
    Difference,
    Replica,
    Scalar,
    announce,
    decode,
    key_of,
)
from kserve_lmcache.tiers.redis import client as redis_client

NAME = "replicas"
_FRESH_SECONDS = 24 * 3600

_UNANNOUNCED = "this server cannot be announced to others"
_UNSEEN = "other servers of this model cannot be seen"
_UNDELETED = "what is out of date cannot be deleted"

_MOST_NAMED = 3
_LONGEST_VALUE = 64


class _NothingToCompareError(Exception):
    """Its text says why."""


def replicas(session: Session, subject: Subject) -> Finding:
    """Announce this server, if it is one, and compare it with all that announced themselves."""
    try:
        own = _own(subject)
    except _NothingToCompareError as reason:
        return skipped(NAME, str(reason))
    findings: list[Finding] = []
    now = time.time()
    try:
        with redis_client.connect(session.remote, session.patience) as client:
            if own.place:
                # Before it looks for others: of two that start at once, one sees the other.
                findings += _attempt(session, _UNANNOUNCED, lambda: announce(client, own))
            told = _read(client, own)
            fresh = [each for each in told if abs(now - each.seen) < _FRESH_SECONDS]
            stale = [each.place for each in told if each not in fresh]
            if own.place and stale:
                findings += _attempt(session, _UNDELETED, lambda: _delete(client, own, stale))
    except (redis.RedisError, OSError) as error:
        findings.append(_failed(session, _UNSEEN, error))
    else:
        findings.append(judge(own, [each for each in fresh if each.place != own.place], now))
    return _together(session, findings)


def judge(own: Replica, others: Sequence[Replica], now: float) -> Finding:
    """Whether ``others``, of the same model's content, share with ``own`` and with each other."""
    seen = "no" if not others else str(len(others))
    count = f"{seen}{' other' if own.place else ''} server{'s' if len(others) != 1 else ''}"
    count = f"{count} of this model in the last {_FRESH_SECONDS // 3600} h"
    if not others:
        return ok(NAME, count)
    if unlike := _unlike(own, others):
        return _warn("nothing is shared with", "here", unlike, len(others), now)
    newest = max(others, key=lambda each: each.seen)
    if unlike := _unlike(newest, others):
        start = f"{_ago(newest, now)} shares nothing with"
        return _warn(start, f"at {_short(newest.place)}", unlike, len(others), now)
    named = _name(others, now)
    if own.namespace:
        return ok(NAME, f"{count}, all alike: {named}")
    known = " and ".join(INPUTS[name][0] for name in own.inputs)
    return ok(NAME, f"{count}, all alike, here too in {known}: {named}")


def _delete(client: Client, own: Replica, places: Iterable[str]) -> None:
    client.hdel(key_of(own), *places)


def _read(client: Client, own: Replica) -> list[Replica]:
    """All that announced themselves with the same content, this server among them."""
    fields: Any = client.hgetall(key_of(own))
    told = (decode(place, text) for place, text in fields.items())
    return [each for each in told if each is not None]


def _own(subject: Subject) -> Replica:
    """What is to be compared.

    Raises:
        _NothingToCompareError: it would say nothing.
    """
    if subject.model_fingerprint == "private":
        raise _NothingToCompareError("model_fingerprint is private: nothing is shared")
    if subject.replica is None:
        raise _NothingToCompareError("needs configuration")
    if subject.replica.content:
        return subject.replica
    if not subject.model:
        raise _NothingToCompareError("no model is given, and those of one model are compared")
    if subject.model_fingerprint == "full":
        raise _NothingToCompareError(
            "model_fingerprint is full, which takes long: a server compares when it starts"
        )
    return replace(subject.replica, content=_content(subject))


def _content(subject: Subject) -> str:
    files = files_of(subject)
    if files is None:
        raise _NothingToCompareError(
            f"{subject.model} is not on this machine: a server compares when it has fetched it"
        )
    directory = fingerprint_cache.directory(subject.environ)
    try:
        found = within(subject.patience, lambda: fingerprint(files, cache_directory=directory))
    except TimeoutError:
        raise _NothingToCompareError(
            f"the model's files could not be read within {subject.patience:g} s"
        ) from None
    except IdentityError as error:
        raise _NothingToCompareError(foreign(error, None)) from error
    return found.digest


def _attempt(session: Session, what: str, write: Callable[[], None]) -> list[Finding]:
    """What went wrong, if anything: who may not write may still read."""
    try:
        write()
    except redis.RedisError as error:
        return [_failed(session, what, error)]
    return []


def _failed(session: Session, what: str, error: Exception) -> Finding:
    evidence = f"{what}: {session.said(error)}"
    if isinstance(error, NoPermissionError):
        fix = f"Allow it: ACL SETUSER … ~{KEY_PREFIX}* +hset +hgetall +hdel +expire."
    else:
        fix = "Look at the log of the server; sharing itself does not depend on it."
    return warning(NAME, evidence, fix)


def _together(session: Session, findings: Sequence[Finding]) -> Finding:
    """One finding, whose text may be other servers'."""
    status = Status.WARNING if any(each.fix for each in findings) else Status.OK
    evidence = "; ".join(each.evidence for each in findings)
    fix = " ".join(dict.fromkeys(each.fix for each in findings if each.fix))
    return Finding(NAME, status, foreign(evidence, session.remote), foreign(fix, session.remote))


Unlike = dict[tuple[Difference, ...], list[Replica]]


def _unlike(one: Replica, others: Iterable[Replica]) -> Unlike:
    """Those that share nothing with ``one``, by their differences."""
    found: Unlike = {}
    for other in others:
        if differences := one.differences(other):
            found.setdefault(differences, []).append(other)
    return found


def _warn(start: str, here: str, unlike: Unlike, count: int, now: float) -> Finding:
    groups = [
        f"{start} {_name(group, now)}: "
        + ", ".join(
            f"{_label(each.name)} {_show(each.there)} there and {_show(each.here)} {here}"
            for each in differences
        )
        for differences, group in list(unlike.items())[:_MOST_NAMED]
    ]
    if more := sum(map(len, list(unlike.values())[_MOST_NAMED:])):
        groups.append(f"nor with {more} more")
    alike = count - sum(map(len, unlike.values()))
    if alike:
        groups.append(f"{alike} of {count} differ in nothing that was compared")
    settings = dict.fromkeys(_setting(each.name) for group in unlike for each in group)
    same = " and ".join(filter(None, settings))
    return warning(
        NAME,
        "; ".join(groups),
        f"Give all of them the same {same}, unless they are meant to differ.",
    )


def _label(name: str) -> str:
    return INPUTS[name][0] if name in INPUTS else _short(name)


def _setting(name: str) -> str:
    return INPUTS[name][1] if name in INPUTS else _short(name)


def _show(value: Scalar) -> str:
    return "none" if value is None else _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _name(group: Sequence[Replica], now: float) -> str:
    """The last seen of a group, and how many more there are."""
    newest = sorted(group, key=lambda each: -each.seen)
    named = [_ago(each, now) for each in newest[:_MOST_NAMED]]
    if more := len(newest) - len(named):
        named.append(f"{more} more")
    return " and ".join(named)


def _ago(replica: Replica, now: float) -> str:
    seconds = max(0.0, now - replica.seen)
    for name, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{_short(replica.place)} ({seconds // length:.0f} {name} ago)"
    return f"{_short(replica.place)} ({seconds:.0f} s ago)"
