"""What the connector's two sides have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.connector.error_containment import Faults

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl


class Side(LMCacheConnectorV1):  # type: ignore[misc]
    """LMCache's connector, and what became of it in this process.

    Attributes:
        faults: of this process, in which vLLM builds one connector.
        failure: why LMCache did not start; empty when it did.
    """

    faults: ClassVar[Faults] = Faults()
    failure: str
    _block_size: int
    _lmcache_engine: LMCacheConnectorV1Impl

    def _record(self, call: str, error: Exception) -> None:
        self.faults.record(call, error)

    def _fail(self, call: str, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {error}"
        self.faults.record(call, error)
