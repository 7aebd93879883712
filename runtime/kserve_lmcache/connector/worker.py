"""The connector in a worker's process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from kserve_lmcache.connector import lmcache_engine
from kserve_lmcache.connector.base import Side
from kserve_lmcache.connector.cpu_affinity import every_core
from kserve_lmcache.connector.error_containment import contained
from kserve_lmcache.connector.metadata import Load, Step
from kserve_lmcache.connector.token_metrics import TokenMetrics
from kserve_lmcache.connector.traces import span
from kserve_lmcache.metrics import start_up_timing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata

    from kserve_lmcache.connector.load_results import LoadResults
    from kserve_lmcache.tiers.guard.load_cost import PrefillRate
    from kserve_lmcache.tiers.guard.tier import Tier

logger = init_logger(__name__)


class WorkerSide(Side):
    """Loads what was promised, says what did not come, and saves what was computed."""

    _device: str
    _loads: LoadResults
    _prefill: PrefillRate
    _tiers: Mapping[str, Tier]
    _accounts: TokenMetrics

    @contained(lambda self, kv_caches: None)
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Give LMCache the paged KV cache: one tensor a layer, by the layer's name."""
        try:
            with every_core(self._device):
                super().register_kv_caches(kv_caches)
            if not lmcache_engine.failure(self._lmcache_engine):
                lmcache_engine.check_on_cpu(self._lmcache_engine, list(kv_caches.values()))
                lmcache_engine.never_wait(self._lmcache_engine)
                self._know_tiers()
                lmcache_engine.answer_lookups(
                    self._lmcache_engine, self._accounts.looked_up, self._record
                )
            start_up_timing.reached(start_up_timing.CACHED)
        except Exception as error:
            self._fail("register_kv_caches", error)

    def _know_tiers(self) -> None:
        engine = self._lmcache_engine
        self._tiers = lmcache_engine.tiers(engine)
        for tier in self._tiers.values():
            tier.load_cost.prefill = self._prefill
        self._accounts = TokenMetrics(
            self._tiers, engine.config.chunk_size, lmcache_engine.is_first(engine), self._prefill
        )
        self._accounts.holds(*lmcache_engine.local_cpu_bytes(engine))

    @contained(lambda self, kv_connector_metadata: None)
    def handle_preemptions(self, kv_connector_metadata: Step) -> None:
        """Blocks are about to be overwritten."""
        if kv_connector_metadata.lmcache is not None:
            super().handle_preemptions(kv_connector_metadata.lmcache)

    @contained(lambda self, connector_metadata: self._skip(connector_metadata))
    def bind_connector_metadata(self, connector_metadata: Step) -> None:
        """A step begins."""
        self._loads.begin(connector_metadata)
        super().bind_connector_metadata(connector_metadata.lmcache)

    @contained(lambda self: self._save_nothing() or False)
    def has_connector_metadata(self) -> bool:
        """Whether LMCache takes part in this step."""
        return bool(super().has_connector_metadata())

    @contained(lambda self, forward_context, **_: None)
    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Load all that this step has to; what is not loaded then is reported."""
        self._prefill.end_step()
        for load in self._loads.all:
            self._load(load)
        self._release(self._loads.dropped)
        self._prefill.begin_step(self._loads.tokens)
        if self._connector_metadata is not None:
            super().start_load_kv(forward_context, **kwargs)

    @contained(lambda self, layer_name: None)
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded layer by layer."""
        super().wait_for_layer_load(layer_name)

    @contained(lambda self, *_, **__: self._save_nothing())
    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """Begin to save a layer."""
        super().save_kv_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    @contained(lambda self: self._save_nothing())
    def wait_for_save(self) -> None:
        """Save what this step computed."""
        if self._connector_metadata is not None:
            began, saved = time.monotonic(), self._traced_saves()
            super().wait_for_save()
            self._trace(saved, began)

    @contained(lambda self, finished_req_ids: (None, self._loads.settled() or None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests that need not wait any longer, loaded or not, as the second."""
        sent, received = super().get_finished(finished_req_ids)
        return sent, (received or set()) | self._loads.settled() or None

    @contained(lambda self: self._loads.failed())
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were promised in this step and are not loaded, for vLLM to compute."""
        reported: set[int] = super().get_block_ids_with_load_errors()
        return reported | self._loads.failed()

    @contained(lambda self: self._end())
    def clear_connector_metadata(self) -> None:
        """A step ends."""
        self._accounts.holds(*lmcache_engine.local_cpu_bytes(self._lmcache_engine))
        self._loads.end()
        super().clear_connector_metadata()

    def _skip(self, step: Step) -> None:
        self._loads.begin(step)
        self._connector_metadata = None

    def _end(self) -> None:
        self._loads.end()
        self._connector_metadata = None

    @contained(lambda self, load: None)
    def _load(self, load: Load) -> None:
        if load.source is None:
            self._release((load.request_id,))
        else:
            began, before = time.monotonic(), self._accounts.read()
            missing = lmcache_engine.load(
                self._lmcache_engine, load.request_id, load.source, self._block_size
            )
            missing &= set(load.blocks)
            self._loads.loaded(load, missing)
            tokens = (len(load.blocks) - len(missing)) * self._block_size
            sources = self._accounts.loaded(tokens, time.monotonic() - began, before)
            if self._loads.traces:
                span(
                    "load",
                    self._loads.traces.get(load.request_id),
                    began,
                    tokens=tokens,
                    bytes=tokens * lmcache_engine.token_bytes(self._lmcache_engine),
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

    @contained(lambda self: setattr(self, "_connector_metadata", None))
    def _save_nothing(self) -> None:
        if self._connector_metadata is not None:
            lmcache_engine.save_nothing(self._lmcache_engine, self._connector_metadata)

    @contained(lambda self: {})
    def _traced_saves(self) -> dict[str, int]:
        """Tokens that this step saves of each traced request; LMCache loses count as it saves."""
        if not (traces := self._loads.traces):
            return {}
        saved = lmcache_engine.saved_tokens(self._lmcache_engine, self._connector_metadata)
        return {name: tokens for name, tokens in saved.items() if name in traces}

    @contained(lambda self, saved, began: None)
    def _trace(self, saved: dict[str, int], began: float) -> None:
        """The requests of a step are saved one after the other; each is told the whole time."""
        for name, tokens in saved.items():
            size = tokens * lmcache_engine.token_bytes(self._lmcache_engine)
            span("store", self._loads.traces[name], began, tokens=tokens, bytes=size)

    @contained(lambda self, requests: None)
    def _release(self, requests: Iterable[str]) -> None:
        lmcache_engine.release(self._lmcache_engine, requests)
