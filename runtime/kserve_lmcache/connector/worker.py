"""The connector's part in a worker's process."""

from __future__ import annotations

import functools
import hashlib
import time
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.logger import init_logger

from kserve_lmcache.compat.lmcache import copy_path
from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.compat.lmcache.lookups import WorkerLookups
from kserve_lmcache.compat.vllm import attention_backends
from kserve_lmcache.config.tier_plugins import PLUGINS
from kserve_lmcache.connector.copy.connector import BlockConnector
from kserve_lmcache.connector.copy.pages import pages_of
from kserve_lmcache.connector.copy.transfer import fence
from kserve_lmcache.connector.cpu_affinity import use_all_cores
from kserve_lmcache.connector.error_containment import ErrorContainment, contained
from kserve_lmcache.connector.load_queue import LoadQueue
from kserve_lmcache.connector.load_results import LoadResults
from kserve_lmcache.connector.metadata import ConnectorMetadata, Load, Source
from kserve_lmcache.connector.start_proof import prove
from kserve_lmcache.connector.stock import StockConnector
from kserve_lmcache.connector.token_metrics import TokenMetrics
from kserve_lmcache.connector.traces import Headers, span
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool
from kserve_lmcache.tiers.guard.load_cost import PrefillRate
from kserve_lmcache.tiers.guard.read_counts import count_reads
from kserve_lmcache.tiers.guard.tier import LOADS, LOOKUPS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVConnectorKVEvents
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kserve_lmcache.tiers.guard.tier import Tier
    from kserve_lmcache.tiers.plugin import TierConnector

logger = init_logger(__name__)

# Loads that run at a time may fill this share of the local CPU tier.
_MAX_SHARE = 0.5
# Seconds that a step which computes nothing waits for a load to end. vLLM asks again at once.
_IDLE_WAIT = 0.005
# Seconds that a shutdown waits for loads. A load that takes longer ends with the process.
_SHUTDOWN_WAIT = 5.0


class WorkerPart:
    """Loads what the scheduler asks for, reports blocks that are not loaded, saves new chunks.

    Loads run beside the engine's steps (:mod:`.load_queue`).
    """

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        # vLLM creates the connector once it knows how large a KV cache fits.
        start_up_timing.reached(start_up_timing.LOADED)
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._proof = ""  # what was proven at the start; empty until then
        self._device = vllm_config.device_config.device_type
        self._block_size = vllm_config.cache_config.block_size
        parallel = vllm_config.parallel_config
        self._rank = parallel.data_parallel_rank * parallel.world_size + parallel.rank
        self._stock = StockConnector(vllm_config, KVConnectorRole.WORKER, kv_cache_config)
        # LMCache's metadata of the current step; None where LMCache takes no part in the step.
        self._lmcache_metadata: KVConnectorMetadata | None = None
        self._lookup_pool = DaemonThreadPool("kv-lookup", LOOKUPS)
        # Set anew when LMCache's configuration is known.
        self._results = LoadResults(LoadQueue(LOADS, 0, self._device))
        self._prefill = PrefillRate()
        self._tiers: Mapping[str, Tier] = {}
        self._token_metrics = TokenMetrics({}, 0, False, self._prefill)

    @property
    def containment(self) -> ErrorContainment:
        """Of this process's LMCache."""
        return self._stock.containment

    def shutdown(self) -> None:
        """Stop LMCache, after the loads that run.

        LMCache's threads run even where it was given up after its start.
        """
        self._lookup_pool.shutdown(wait=False)
        self._results.queue.close(_SHUTDOWN_WAIT)
        try:
            if self._stock.is_created:
                self._stock.stop()
        except Exception as error:
            self.containment.record("shutdown", error)

    @contained(lambda self, kv_caches: None)
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Give LMCache the paged KV cache: one tensor a layer, by the layer's name."""
        try:
            with use_all_cores(self._device):
                self._stock.connector.register_kv_caches(kv_caches)
            adapter = self._stock.adapter
            if not lmcache_engine.worker_failure(adapter):
                self._register_copy(kv_caches)
                connectors = self._set_up_tiers()
                lmcache_engine.never_wait_for_room(adapter)
                WorkerLookups(
                    adapter,
                    self._lookup_pool,
                    self._token_metrics.count_lookup,
                    self.containment.record,
                )
                start_up_timing.reached(start_up_timing.CACHED)
                self._proof = prove(adapter, kv_caches, pages_of(self._kv_cache_config), connectors)
                start_up_timing.reached(start_up_timing.PROVEN)
        except Exception as error:
            self.containment.give_up("register_kv_caches", error)

    def _register_copy(self, kv_caches: dict[str, torch.Tensor]) -> None:
        copies = copy_path.copy_path(self._stock.adapter)
        if isinstance(copies, BlockConnector):
            copies.register(kv_caches)
            # What the namespace cannot have, because vLLM's worker decides it.
            parts = [self._device, *attention_backends(self._vllm_config), copies.cache.form]
            digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
            copy_path.name_keys(self._stock.adapter, digest[:12])

    def _set_up_tiers(self) -> Mapping[str, TierConnector]:
        """The connectors to the tiers, by the tier's name."""
        adapter = self._stock.adapter
        names = {plugin.name: plugin.tier for plugin in PLUGINS}
        connectors = lmcache_engine.plugin_connectors(adapter, names)
        self._tiers = {name: connector.tier for name, connector in connectors.items()}
        for tier in self._tiers.values():
            tier.load_cost.prefill = self._prefill
        self._token_metrics = TokenMetrics(
            self._tiers, adapter.config.chunk_size, lmcache_engine.is_first(adapter), self._prefill
        )
        max_bytes = int(_MAX_SHARE * lmcache_engine.local_cpu_bytes(adapter)[1])
        self._results = LoadResults(LoadQueue(LOADS, max_bytes, self._device))
        self.set_local_bytes()
        return connectors

    @contained(lambda self, connector_metadata: self._begin_without_lmcache(connector_metadata))
    def bind_connector_metadata(self, connector_metadata: ConnectorMetadata) -> None:
        """Begin a step."""
        self._results.begin_step(connector_metadata)
        self._prefill.end_step()
        self._prefill.begin_step(connector_metadata.tokens)
        self._stock.connector.bind_connector_metadata(connector_metadata.lmcache)
        self._lmcache_metadata = connector_metadata.lmcache

    def has_connector_metadata(self) -> bool:
        """Whether LMCache takes part in the current step."""
        return self._lmcache_metadata is not None

    @contained(lambda self, forward_context, **_: None)
    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Begin to load all that the step asks for.

        vLLM calls this before the step's computation, and since 0.32 after it.
        """
        step = self._results.step
        for load in step.loads:
            self._begin_load(load)
        self._unpin(step.unpinned)
        if self._lmcache_metadata is not None:
            self._stock.connector.start_load_kv(forward_context, **kwargs)

    @contained(lambda self, layer_name: None)
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Let LMCache continue after a layer. Nothing is loaded layer by layer."""
        self._stock.connector.wait_for_layer_load(layer_name)

    @contained(lambda self, *_, **__: self._drop_saves())
    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """Begin to save a layer."""
        self._stock.connector.save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    @contained(lambda self: self._drop_saves())
    def wait_for_save(self) -> None:
        """Save the chunks that this step completed."""
        if self._lmcache_metadata is not None:
            began, saved = time.monotonic(), self._traced_saves()
            self._stock.connector.wait_for_save()
            self._export_saves(saved, began)

    @contained(lambda self, finished_req_ids: (None, self._results.finished_requests() or None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose saves ended, and requests whose loads ended, loaded or not."""
        self._unpin(self._results.queue.cancel(finished_req_ids))
        if not self._results.step.tokens:
            self._results.queue.wait(_IDLE_WAIT)
        sent, received = self._stock.connector.get_finished(finished_req_ids)
        return sent, (received or set()) | self._results.finished_requests() or None

    @contained(lambda self: self._results.missing_blocks())
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of the loads that ended, and that are not loaded. vLLM computes them."""
        reported: set[int] = self._stock.connector.get_block_ids_with_load_errors()
        return reported | self._results.missing_blocks()

    @contained(lambda self: None)
    def get_kv_connector_kv_cache_events(self) -> KVConnectorKVEvents | None:
        """The chunks that LMCache has stored since the last call."""
        return self._stock.connector.get_kv_connector_kv_cache_events()

    @contained(lambda self: self._end_without_lmcache())
    def clear_connector_metadata(self) -> None:
        """End the step."""
        self._stock.connector.clear_connector_metadata()
        self._end_without_lmcache()

    @contained(lambda self: None)
    def set_local_bytes(self) -> None:
        """Publish the bytes in use and the capacity of the local CPU tier."""
        used, capacity = lmcache_engine.local_cpu_bytes(self._stock.adapter)
        metric("local_cpu_used_bytes").set(used)
        metric("local_cpu_capacity_bytes").set(capacity)

    def state(self) -> dict[str, Any]:
        """This worker's part of the snapshot (:mod:`kserve_lmcache.metrics.snapshots`)."""
        return {
            "rank": self._rank,
            "failure": self._failure(),
            "tiers": self._tier_reports(),
            "proof": self._proof,
            "moments": start_up_timing.moments(),
        }

    @contained(lambda self: {})
    def effective_config(self) -> dict[str, Any]:
        """The configuration that LMCache uses; empty where LMCache does not work."""
        return lmcache_engine.effective_config(self._stock.adapter)

    @contained(lambda self: {})
    def _tier_reports(self) -> dict[str, Any]:
        return {name: tier.report() for name, tier in self._tiers.items()}

    @contained(lambda self: self.containment.failure or "LMCache does not tell its state")
    def _failure(self) -> str:
        return lmcache_engine.worker_failure(self._stock.adapter)

    def _begin_without_lmcache(self, metadata: ConnectorMetadata) -> None:
        self._results.begin_step(metadata)
        self._lmcache_metadata = None

    def _end_without_lmcache(self) -> None:
        self._results.end_step()
        self._lmcache_metadata = None

    @contained(lambda self, load: None)
    def _begin_load(self, load: Load) -> None:
        if (source := load.source) is None:
            self._unpin((load.request_id,))
            return
        tokens = len(source.tokens) - source.computed_tokens
        size = tokens * lmcache_engine.token_bytes(self._stock.adapter)
        headers = self._results.step.traces.get(load.request_id)
        # The blocks may have been another request's, which an accelerator may still compute.
        after = fence(self._device)
        run = functools.partial(self._load, load, source, headers, after)
        self._results.begin(load, size, run)

    @contained(lambda self, load, *_: load.blocks)
    def _load(
        self, load: Load, source: Source, headers: Headers | None, after: Any
    ) -> Collection[int]:
        """Load the blocks of a request; returns those that are missing."""
        if after is not None:
            after.synchronize()
        adapter, began = self._stock.adapter, time.monotonic()
        with count_reads() as read:
            missing = lmcache_engine.load(
                adapter,
                load.request_id,
                tokens=source.tokens,
                computed_tokens=source.computed_tokens,
                blocks=source.blocks,
                block_size=self._block_size,
                request_configs=source.request_configs,
            )
        missing &= set(load.blocks)
        tokens = (len(load.blocks) - len(missing)) * self._block_size
        sources = self._token_metrics.count_load(tokens, time.monotonic() - began, read)
        if headers:
            span(
                "load",
                headers,
                began,
                tokens=tokens,
                bytes=tokens * lmcache_engine.token_bytes(adapter),
                missing_blocks=len(missing),
                **{f"tokens.{name}": count for name, count in sources.items()},
            )
        if missing:
            logger.warning(
                "%d of %d blocks of request %s failed to load and are computed",
                len(missing),
                len(load.blocks),
                load.request_id,
            )
        return missing

    @contained(lambda self: setattr(self, "_lmcache_metadata", None))
    def _drop_saves(self) -> None:
        if self._lmcache_metadata is not None:
            lmcache_engine.drop_saves(self._stock.adapter, self._lmcache_metadata)

    @contained(lambda self: {})
    def _traced_saves(self) -> dict[str, int]:
        """The number of tokens that this step saves, by traced request.

        LMCache changes its metadata while it saves, so this is called before.
        """
        if not (traces := self._results.step.traces):
            return {}
        saved = lmcache_engine.saved_tokens(self._stock.adapter, self._lmcache_metadata)
        return {name: tokens for name, tokens in saved.items() if name in traces}

    @contained(lambda self, saved, began: None)
    def _export_saves(self, saved: dict[str, int], began: float) -> None:
        """Export a span for each traced save. Each has the duration of all saves of the step."""
        for name, tokens in saved.items():
            size = tokens * lmcache_engine.token_bytes(self._stock.adapter)
            span("store", self._results.step.traces[name], began, tokens=tokens, bytes=size)

    @contained(lambda self, requests: None)
    def _unpin(self, requests: Iterable[str]) -> None:
        lmcache_engine.unpin(self._stock.adapter, requests)
