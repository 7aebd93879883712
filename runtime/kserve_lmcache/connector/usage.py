"""Where the cached tokens of a request came from, on their way from the workers to the server.

The first worker counts what it loads, and vLLM brings the counts to the scheduler's process after
the step (``KVConnectorWorkerMetadata``). They leave the engine with the request's last output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

# The entry of the transfer parameters of a request's last output.
SOURCES = "kserve_lmcache.sources"


@dataclass
class LoadedTokens(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Tokens that were loaded since the last step, by request and tier."""

    requests: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> LoadedTokens:
        """Those of several workers. Only the first one counts."""
        return LoadedTokens({**self.requests, **getattr(other, "requests", {})})
