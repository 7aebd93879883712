"""What a schema cannot see in a set of manifests.

The API server, or KServe's controller, accepts every fault named here and then fails later,
elsewhere or silently. A rule takes the whole set, since documents refer to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.packaging.pods import Document
from tests.packaging.rules import containers, documents, kserve, network, security
from tests.packaging.rules.fault import Rule

RULES: dict[str, Rule] = {
    **documents.RULES,
    **kserve.RULES,
    **containers.RULES,
    **network.RULES,
    **security.RULES,
}


@dataclass(frozen=True)
class Finding:
    """One fault, by the name of the rule that found it."""

    rule: str
    where: str
    message: str


def check(documents: Sequence[Document]) -> list[Finding]:
    """Every fault of a set of documents that are applied together."""
    return [
        Finding(name, where, message)
        for name, rule in RULES.items()
        for where, message in rule(documents)
    ]
