"""The connector that vLLM loads: a façade over a scheduler part and a worker part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.config.engine_file import STATS_ARE_RECEIVED
from kserve_lmcache.connector.reporter import REPORTER
from kserve_lmcache.connector.scheduler import SchedulerPart
from kserve_lmcache.connector.stats import SnapshotReceiver, SnapshotStats, StartReport
from kserve_lmcache.connector.usage import LoadedTokens
from kserve_lmcache.connector.worker import WorkerPart
from kserve_lmcache.metrics.snapshots import Snapshots, merge, workers

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from kserve_lmcache.connector.metadata import ConnectorMetadata


class KServeLMCacheConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """Connects vLLM to a cache of LMCache's on every device, with isolation, containment, reports.

    - Every request passes :mod:`.isolation`, which completes its keys.
    - A request waits for its load and is computed, and shared with others, after the load
      (:mod:`.pending_loads` in the scheduler, :mod:`.load_results` in the workers,
      :mod:`.metadata` between them). VLLM's own connector loads in the step that computes the
      request, and repairs afterwards.
    - Nothing that LMCache raises reaches vLLM (:mod:`.error_containment`). Each load ends in its
      step whatever happens: its blocks are loaded, or reported for vLLM to compute.
    - The cache is in the workers' processes or in one of its own (:mod:`.caches`).
    - A process whose cache does not start survives until the server has read the reason
      (:mod:`.reporter`). The server then ends the engine.

    Attributes:
        scheduler: set in the scheduler's process only.
        worker: set in a worker's process only.
    """

    scheduler: SchedulerPart
    worker: WorkerPart

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._stats_are_received = bool(extra_config.get(STATS_ARE_RECEIVED))
        if role == KVConnectorRole.WORKER:
            self.worker = WorkerPart(vllm_config, kv_cache_config)
            REPORTER.add("worker", self.worker.state)
        else:
            self.scheduler = SchedulerPart(vllm_config, kv_cache_config)
            REPORTER.add("scheduler", self.scheduler.state)
            REPORTER.write()

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """As vLLM's own connector."""
        return bool(LMCacheConnectorV1.requires_piecewise_for_cudagraph(extra_config))

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> SnapshotStats:
        """Empty stats, of which vLLM's log says nothing: the server logs figures of its own."""
        return SnapshotStats()

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> SnapshotReceiver:
        """What receives the stats in the server's process."""
        return SnapshotReceiver(*args)

    # In both

    def get_kv_connector_stats(self) -> SnapshotStats | None:
        """This process's snapshot, if a metric has changed since the last delivery."""
        if self.role == KVConnectorRole.WORKER:
            self.worker.set_metrics()
        snapshots = REPORTER.take_changes() if self._stats_are_received else None
        return None if snapshots is None else SnapshotStats(snapshots)

    def shutdown(self) -> None:
        """Flush and stop the cache."""
        if self.role == KVConnectorRole.WORKER:
            REPORTER.remove("worker")
            self.worker.shutdown()
        else:
            REPORTER.remove("scheduler")
            self.scheduler.shutdown()

    # In the workers

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """See :meth:`.WorkerPart.register_kv_caches`."""
        self.worker.register_kv_caches(kv_caches)

    def bind_connector_metadata(self, connector_metadata: ConnectorMetadata) -> None:
        """See :meth:`.WorkerPart.bind_connector_metadata`."""
        self.worker.bind_connector_metadata(connector_metadata)

    def has_connector_metadata(self) -> bool:
        """See :meth:`.WorkerPart.has_connector_metadata`."""
        return self.worker.has_connector_metadata()

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """See :meth:`.WorkerPart.start_load_kv`."""
        self.worker.start_load_kv(forward_context, **kwargs)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """See :meth:`.WorkerPart.wait_for_layer_load`."""
        self.worker.wait_for_layer_load(layer_name)

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """See :meth:`.WorkerPart.save_kv_layer`."""
        self.worker.save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    def wait_for_save(self) -> None:
        """See :meth:`.WorkerPart.wait_for_save`."""
        self.worker.wait_for_save()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """See :meth:`.WorkerPart.get_finished`."""
        return self.worker.get_finished(finished_req_ids)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """See :meth:`.WorkerPart.get_block_ids_with_load_errors`."""
        return self.worker.get_block_ids_with_load_errors()

    def build_connector_worker_meta(self) -> LoadedTokens | None:
        """See :meth:`.WorkerPart.take_loaded`."""
        return self.worker.take_loaded()

    def clear_connector_metadata(self) -> None:
        """See :meth:`.WorkerPart.clear_connector_metadata`."""
        self.worker.clear_connector_metadata()

    def get_handshake_metadata(self) -> StartReport:
        """This worker's first snapshot, which vLLM brings to the scheduler's connector."""
        return StartReport(REPORTER.first(self.worker.effective_config()))

    # In the scheduler's process

    def on_new_request(self, request: Request) -> None:
        """See :meth:`.SchedulerPart.on_new_request`."""
        self.scheduler.on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """See :meth:`.SchedulerPart.get_num_new_matched_tokens`."""
        return self.scheduler.get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """See :meth:`.SchedulerPart.update_state_after_alloc`."""
        self.scheduler.update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> ConnectorMetadata:
        """See :meth:`.SchedulerPart.build_connector_meta`."""
        return self.scheduler.build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """See :meth:`.SchedulerPart.update_connector_output`."""
        self.scheduler.update_connector_output(connector_output)

    def request_finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """See :meth:`.SchedulerPart.request_finished`."""
        return self.scheduler.request_finished(request, block_ids)

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], StartReport]
    ) -> None:
        """Deliver the first snapshots of all workers, by their pipeline and tensor ranks."""
        snapshots: Snapshots = {}
        for report in metadata.values():
            merge(snapshots, report.snapshots)
        REPORTER.add_others(snapshots)
        self.scheduler.set_workers([each["worker"] for each in workers(snapshots)])
