"""What carries snapshots on vLLM's own road: stats after a step, and the handshake at the start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorHandshakeMetadata
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)
from vllm.logger import init_logger

from kserve_lmcache.metrics.snapshots import RECEIVED, Snapshots, merge

logger = init_logger(__name__)


@dataclass
class SnapshotStats(KVConnectorStats):  # type: ignore[misc]
    """Snapshots by process (``data``). VLLM aggregates the stats of all processes."""

    def reset(self) -> None:
        """Remove all snapshots."""
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> SnapshotStats:
        """Add the snapshots of other processes, or newer ones."""
        merge(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """Nothing: the server logs figures of its own."""
        return {}

    def is_empty(self) -> bool:
        """Whether there is no snapshot."""
        return not self.data


class SnapshotReceiver(KVConnectorPromMetrics):  # type: ignore[misc]
    """Keeps the snapshots that arrive in the server's process."""

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Take snapshots. An exception would end the task that delivers vLLM's answers."""
        try:
            RECEIVED.add(transfer_stats_data)
        except Exception:
            logger.exception("The snapshots of the engine's processes are unusable")


@dataclass
class StartReport(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """A worker's first snapshot."""

    snapshots: Snapshots
