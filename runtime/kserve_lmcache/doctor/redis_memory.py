"""Whether the server keeps within its memory, and what it does when that is full."""

from __future__ import annotations

from collections.abc import Iterable

import redis

from kserve_lmcache.doctor.check import Finding, Status, failure, ok, size, skipped, warning
from kserve_lmcache.doctor.redis_session import Information, Session

NAME = "remote memory"
PERSISTENCE = "remote persistence"

_FIX_POLICY = "Set maxmemory-policy to allkeys-lru or allkeys-lfu on the server."
_WORST_FIRST = (Status.FAILURE, Status.WARNING, Status.SKIPPED, Status.OK)


def memory(session: Session) -> Finding:
    """The limit and the policy, from INFO: CONFIG is forbidden on most managed servers."""
    if not session.information:
        return skipped(NAME, "needs INFO, which is refused")
    return _worst({place: limit(info) for place, info in session.information.items()})


def limit(information: Information) -> Finding:
    """Judge one server's limit."""
    maximum, used = information.get("maxmemory"), information.get("used_memory", 0)
    policy = str(information.get("maxmemory_policy", "by a policy that is not shown"))
    if maximum is None:
        return skipped(NAME, "the server does not show maxmemory")
    if not maximum:
        return warning(
            NAME,
            f"no limit (maxmemory 0), {size(used)} used: it grows until the system kills it",
            "Set maxmemory on the server, and maxmemory-policy to allkeys-lru or allkeys-lfu.",
        )
    evidence = f"{size(used)} of {size(maximum)} used, {policy}"
    if policy == "noeviction":
        if used >= maximum:
            return failure(NAME, f"full: {evidence} refuses every write", _FIX_POLICY)
        return warning(NAME, f"{evidence} fills up, and then refuses every write", _FIX_POLICY)
    if policy.startswith("volatile-"):
        return warning(NAME, f"{evidence} evicts only what has an expiry time", _FIX_POLICY)
    return ok(NAME, evidence)


def persistence(session: Session) -> Finding:
    """Whether the server writes to its disk what can be computed again."""
    if not session.information:
        return skipped(PERSISTENCE, "needs INFO, which is refused")
    points: str | None
    try:
        points = str(session.client.config_get("save").get("save", ""))
    except redis.RedisError:
        points = None  # a managed server, or a user who may not
    findings = {
        place: written(bool(information.get("aof_enabled")), points)
        for place, information in session.information.items()
    }
    return _worst(findings)


def written(append_only: bool, points: str | None) -> Finding:
    """Judge one server by its append-only file and its save points (``None``: not shown)."""
    ways = ["an append-only file"] if append_only else []
    if points:
        ways.append(f"snapshots (save {points})")
    if ways:
        return warning(
            PERSISTENCE,
            f"{' and '.join(ways)}: forks the server, which may double its memory",
            "A cache needs none: set save '' and appendonly no on the server.",
        )
    if points is None:
        return ok(PERSISTENCE, "no append-only file; the server does not show its save points")
    return ok(PERSISTENCE, "none, as is right for a cache")


def _worst(findings: dict[str, Finding]) -> Finding:
    """Of several servers the one that is worst off, named."""
    place, finding = min(findings.items(), key=lambda item: _WORST_FIRST.index(item[1].status))
    if len(_distinct(findings.values())) == 1:
        return finding
    evidence = f"{place}: {finding.evidence}"
    return Finding(finding.name, finding.status, evidence, finding.fix)


def _distinct(findings: Iterable[Finding]) -> set[str]:
    return {finding.evidence for finding in findings}
