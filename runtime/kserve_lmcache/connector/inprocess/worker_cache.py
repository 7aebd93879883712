"""LMCache's cache engine in a worker's process, behind vLLM's LMCache connector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from kserve_lmcache.compat.lmcache import copy_path
from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.compat.lmcache.local_index import key_maker, watch_local
from kserve_lmcache.compat.lmcache.lookups import WorkerLookups
from kserve_lmcache.config.tier_plugins import PLUGINS
from kserve_lmcache.connector.caches import Loaded, OnError
from kserve_lmcache.connector.copy.form import form_of
from kserve_lmcache.connector.copy.pages import pages_of
from kserve_lmcache.connector.events.journal import journal_of
from kserve_lmcache.connector.events.worker import WorkerEvents, worker_events
from kserve_lmcache.connector.inprocess.block_connector import BlockConnector
from kserve_lmcache.connector.inprocess.start_proof import prove
from kserve_lmcache.connector.inprocess.steering import InProcessSteering
from kserve_lmcache.connector.inprocess.stock import StockConnector
from kserve_lmcache.connector.token_metrics import count_lookup
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool
from kserve_lmcache.tiers.guard.read_counts import count_reads
from kserve_lmcache.tiers.guard.tier import LOOKUPS

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kserve_lmcache.connector.metadata import Load
    from kserve_lmcache.tiers.guard.load_cost import PrefillRate
    from kserve_lmcache.tiers.plugin import TierConnector


class InProcessWorkerCache:
    """Implements :class:`~kserve_lmcache.connector.caches.WorkerCache`."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._stock = StockConnector(vllm_config, KVConnectorRole.WORKER, kv_cache_config)
        self._adapter = self._stock.adapter
        self._pool = DaemonThreadPool("kv-lookup", LOOKUPS)
        self._connectors: Mapping[str, TierConnector] = {}
        self._events: WorkerEvents | None = None
        self._saves: Any = None  # LMCache's own metadata of the step

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return int(self._adapter.config.chunk_size)

    @property
    def is_first(self) -> bool:
        """Whether this is the engine's first worker."""
        return lmcache_engine.is_first(self._adapter)

    @property
    def local_bytes(self) -> int:
        """The size of this worker's local tier."""
        return lmcache_engine.local_cpu_bytes(self._adapter)[1]

    @property
    def tier_names(self) -> tuple[str, ...]:
        """The names of the tiers below the local one."""
        return tuple(self._connectors)

    def register(self, kv_caches: dict[str, torch.Tensor], on_error: OnError) -> str:
        """Use this KV cache from now on, and prove that what is stored comes back."""
        self._stock.connector.register_kv_caches(kv_caches)
        if lmcache_engine.worker_failure(self._adapter):
            return ""
        self._register_copy(kv_caches)
        names = {plugin.name: plugin.tier for plugin in PLUGINS}
        self._connectors = lmcache_engine.plugin_connectors(self._adapter, names)
        lmcache_engine.never_wait_for_room(self._adapter)
        WorkerLookups(self._adapter, self._pool, count_lookup, on_error)
        self._watch()
        start_up_timing.reached(start_up_timing.CACHED)
        pages = pages_of(self._kv_cache_config)
        proof = prove(self._adapter, kv_caches, pages, self._connectors)
        start_up_timing.reached(start_up_timing.PROVEN)
        return proof

    def _watch(self) -> None:
        """Tell the scheduler's process from now on what the tiers hold, where events are on."""
        if (events := worker_events(self._vllm_config)) is None:
            return
        engine, connectors = self._adapter.lmcache_engine, tuple(self._connectors.values())
        watch_local(engine, events.changes.of("local"))
        for name, connector in self._connectors.items():
            connector.watch(events.changes.of(name))
        journal = journal_of(self._vllm_config, self._adapter.config)

        def learn() -> None:
            """Take the keys of the files of earlier processes."""
            if journal is not None:
                keys = [*map(key_maker(engine), journal.names())]
                journal.close()
                for connector in connectors:
                    connector.learn(keys)

        events.start(learn, lambda: all(connector.is_listed for connector in connectors))
        self._events = events

    def _register_copy(self, kv_caches: dict[str, torch.Tensor]) -> None:
        copies = copy_path.copy_path(self._adapter)
        if isinstance(copies, BlockConnector):
            copies.register(kv_caches)
            copy_path.name_keys(self._adapter, form_of(self._vllm_config, copies.cache.form))

    def begin_step(self, work: Any) -> None:
        """Begin a step."""
        self._stock.connector.bind_connector_metadata(work)
        self._saves = work

    def start_load(self, forward_context: ForwardContext, **options: Any) -> None:
        """Let LMCache continue. It loads nothing by itself."""
        self._stock.connector.start_load_kv(forward_context, **options)

    def wait_for_layer(self, layer_name: str) -> None:
        """Let LMCache continue after a layer."""
        self._stock.connector.wait_for_layer_load(layer_name)

    def save_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **options: Any,
    ) -> None:
        """Begin to save a layer."""
        self._stock.connector.save_kv_layer(layer_name, kv_layer, attn_metadata, **options)

    def save(self) -> None:
        """Store the chunks that the step completed."""
        self._stock.connector.wait_for_save()

    def saved_tokens(self) -> Mapping[str, int]:
        """The number of tokens that :meth:`save` stores, by request."""
        return lmcache_engine.saved_tokens(self._adapter, self._saves)

    def drop_saves(self) -> None:
        """Store nothing in this step."""
        lmcache_engine.drop_saves(self._adapter, self._saves)

    def end_step(self) -> None:
        """End the step."""
        self._stock.connector.clear_connector_metadata()

    def finished(self, requests: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """As vLLM's ``get_finished``."""
        sent, received = self._stock.connector.get_finished(requests)
        return sent, received

    def load_errors(self) -> set[int]:
        """Blocks that LMCache failed to load by itself."""
        found: set[int] = self._stock.connector.get_block_ids_with_load_errors()
        return found

    def load(self, load: Load) -> Loaded:
        """Load the blocks of a request."""
        source = load.source
        with count_reads() as read:
            missing = lmcache_engine.load(
                self._adapter,
                load.request_id,
                tokens=source.tokens,
                computed_tokens=source.computed_tokens,
                blocks=source.blocks,
                block_size=self._vllm_config.cache_config.block_size,
                request_configs=source.request_configs,
            )
        return Loaded(missing, read)

    def token_bytes(self) -> int:
        """Bytes of one token's KV in this worker."""
        return lmcache_engine.token_bytes(self._adapter)

    def unpin(self, requests: Iterable[str]) -> None:
        """Unpin the chunks that lookups pinned."""
        lmcache_engine.unpin(self._adapter, requests)

    def set_metrics(self) -> None:
        """Publish the bytes in use and the capacity of the local CPU tier."""
        used, capacity = lmcache_engine.local_cpu_bytes(self._adapter)
        metric("local_cpu_used_bytes").set(used)
        metric("local_cpu_capacity_bytes").set(capacity)

    def tiers(self) -> Mapping[str, Mapping[str, Any]]:
        """Reports of the tiers, by name."""
        return {name: connector.tier.report() for name, connector in self._connectors.items()}

    def set_prefill(self, prefill: PrefillRate) -> None:
        """Take what measures the speed at which the engine computes prompts."""
        for connector in self._connectors.values():
            connector.tier.load_cost.prefill = prefill

    def effective_config(self) -> Mapping[str, Any]:
        """The configuration that LMCache uses, key by key."""
        return lmcache_engine.effective_config(self._adapter)

    def steering(self, place: str, quotas: Mapping[str, int]) -> InProcessSteering:
        """Steers the tiers of this worker, and keeps the quotas."""
        engine = self._adapter.lmcache_engine
        return InProcessSteering(engine, self._connectors, self.local_bytes, place, quotas)

    def form(self) -> Mapping[str, Any]:
        """Nothing: LMCache's workers make the keys."""
        return {}

    def failure(self) -> str:
        """Why LMCache does not work in this process; empty when it works."""
        return lmcache_engine.worker_failure(self._adapter)

    def stop(self) -> None:
        """Stop LMCache."""
        if self._events is not None:
            self._events.stop()
        self._pool.shutdown(wait=False)
        self._stock.stop()
