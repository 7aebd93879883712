"""LMCache in the scheduler's process, behind vLLM's LMCache connector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.compat.lmcache.local_index import hash_maker, text_of
from kserve_lmcache.compat.lmcache.lookups import LookupPending, SchedulerLookups
from kserve_lmcache.compat.lmcache.pictures import tokens_in_keys
from kserve_lmcache.connector.events.journal import journal_of, remove_old_journals
from kserve_lmcache.connector.events.scheduler import scheduler_events
from kserve_lmcache.connector.inprocess.stock import StockConnector

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request


@dataclass(frozen=True)
class Source:
    """What a load reads.

    Attributes:
        tokens: the prompt up to the last token to load, as keys have it; a whole number of
            LMCache's chunks.
        computed_tokens: how many of ``tokens`` vLLM has already.
        blocks: the blocks of ``tokens``, in order.
        request_configs: what LMCache puts into the keys beside the tokens.
    """

    tokens: list[int]
    computed_tokens: int
    blocks: Sequence[int]
    request_configs: Mapping[str, str] | None


class InProcessSchedulerCache:
    """Implements :class:`~kserve_lmcache.connector.caches.SchedulerCache`."""

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self._stock = StockConnector(vllm_config, KVConnectorRole.SCHEDULER, kv_cache_config)
        self._adapter = self._stock.adapter
        self._looked_up: Request | None = None
        self._lookups = SchedulerLookups(self._adapter, self._announce)
        config = lmcache_engine.effective_config(self._adapter)
        self.tags_reach_keys = not config["use_layerwise"]
        self._announces_answers = bool(config["save_decode_cache"])
        journal = journal_of(vllm_config, self._adapter.config)
        self._events = scheduler_events(
            vllm_config,
            kv_cache_config,
            int(config["chunk_size"]),
            hash_maker(self._adapter),
            journal,
        )
        remove_old_journals(self._adapter.config, None if self._events is None else journal)

    def look_up(self, request: Request, computed_tokens: int) -> int | None:
        """The number of tokens to load beyond those that vLLM has; ``None``: not known yet."""
        found: int | None
        self._looked_up = request
        try:
            found, _ = self._stock.connector.get_num_new_matched_tokens(request, computed_tokens)
        except LookupPending:
            return None
        if found == 0:
            lmcache_engine.limit_cached_tokens(self._adapter, request.request_id, computed_tokens)
        return found

    def compute(self, request: Request, computed_tokens: int) -> None:
        """Load nothing for a request, and store what it computes."""
        name = request.request_id
        lmcache_engine.set_cached_tokens(self._adapter, name, computed_tokens, cached_tokens=0)
        if self._events is not None:
            self._events.add(request)

    def allocated(
        self, request: Request, blocks: KVCacheBlocks, tokens: int, load_failed: bool
    ) -> Source | None:
        """Take note of a request's blocks, and return the source of its load."""
        name, computed = request.request_id, request.num_computed_tokens
        if computed and load_failed:
            lmcache_engine.set_cached_tokens(self._adapter, name, computed, cached_tokens=computed)
        self._stock.connector.update_state_after_alloc(request, blocks, tokens)
        if tokens <= 0:
            return None
        found, in_vllm, configs = lmcache_engine.found_tokens(self._adapter, request)
        table = blocks.get_block_ids()[0]
        return Source(list(tokens_in_keys(request)[:found]), in_vllm, table, configs)

    def build(self, output: SchedulerOutput) -> Any:
        """LMCache's own metadata of a step."""
        return self._stock.connector.build_connector_meta(output)

    def update(self, output: KVConnectorOutput) -> None:
        """Take note of the results of a step."""
        self._stock.connector.update_connector_output(output)

    def finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Take note of the end of a request."""
        if self._events is not None and self._announces_answers:
            self._events.add(request)
        finished: tuple[bool, dict[str, Any] | None]
        finished = self._stock.connector.request_finished(request, block_ids)
        return finished

    def forget(self, request_id: str, hidden: bool) -> None:
        """Remove a request that has ended."""
        if hidden:
            lmcache_engine.forget(self._adapter, request_id)
        self._lookups.forget(request_id)

    def set_workers(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: LMCache's workers make the keys."""

    def failure(self) -> str:
        """Why LMCache does not work in this process; empty when it works."""
        return lmcache_engine.scheduler_failure(self._adapter)

    def stop(self) -> None:
        """Stop LMCache."""
        if self._events is not None:
            self._events.stop()
        self._stock.stop()

    def _announce(self, lookup_id: str, hashes: Sequence[int]) -> None:
        """Name the chunks of a request for events, before a worker may store or find them."""
        request = self._looked_up
        if self._events is not None and request is not None and request.request_id == lookup_id:
            self._events.add(request, [text_of(each) for each in hashes])
