"""Runs the doctor's checks of a remote store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor import report, store
from kserve_lmcache.doctor.check import Check, Finding, Status
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.doctor.run import examine
from kserve_lmcache.server.announcement import Replica
from tests.support.stores import Store

STORE_CHECKS = (
    "remote name",
    "remote connection",
    "remote login",
    "remote server",
    "remote topology",
    "remote clock",
    "remote memory",
    "remote persistence",
    "remote round trip",
    "replicas",
)
CHUNK_BYTES = 2**20
# No server: it looks for others and announces nothing.
OBSERVER = Replica({"hash_seed": "0"}, content="0123456789abcdef" * 4)


def redis_remote(
    store: Store | str, scheme: str | None = None, port: int | None = None, **fields: Any
) -> Remote:
    """A remote by URL, or the one that a running server is, with its password."""
    if isinstance(store, Store):
        fields.setdefault("password", store.password)
        store = f"{scheme or 'redis'}://{store.host}:{port or store.port}"
    return Remote(store, "the test", **fields)


def look_at(
    remote: Remote,
    timeout: float = 10.0,
    chunk_bytes: int = CHUNK_BYTES,
    replica: Replica = OBSERVER,
    patient: bool = False,
    **fields: Any,
) -> list[Finding]:
    """The findings of the store's checks; no report may show the password.

    ``fields`` are more of the context's.
    """
    context = Context(remote=remote, chunk_bytes=chunk_bytes, replica=replica, **fields)
    findings = examine(context, (Check("remote store", store.store),), timeout, patient)
    if remote.password:
        for shown in (
            report.table(findings, colour=True),
            report.as_json(findings),
            repr(findings),
            repr(context),
        ):
            assert remote.password not in shown
    return findings


def find(findings: Sequence[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def statuses(findings: Sequence[Finding]) -> dict[str, Status]:
    return {finding.name: finding.status for finding in findings}


def unchecked_after(findings: Sequence[Finding], name: str) -> None:
    """All checks before this one are ok, and all after it were skipped because of it."""
    names = [finding.name for finding in findings]
    position = names.index(name)
    assert all(finding.status is Status.OK for finding in findings[:position])
    assert len(findings) > position + 1
    for finding in findings[position + 1 :]:
        assert (finding.status, finding.evidence) == (Status.SKIPPED, f"needs {name}")
