"""The connector's part in a worker's process."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from kserve_lmcache.compat.vllm import engine_number
from kserve_lmcache.config.engine_file import QUOTAS, STEERED
from kserve_lmcache.connector.control import Control, socket_path
from kserve_lmcache.connector.copy.transfer import fence
from kserve_lmcache.connector.cpu_affinity import use_all_cores
from kserve_lmcache.connector.error_containment import ErrorContainment, contained
from kserve_lmcache.connector.load_queue import LoadQueue
from kserve_lmcache.connector.load_results import LoadResults
from kserve_lmcache.connector.metadata import ConnectorMetadata, Load
from kserve_lmcache.connector.modes import worker_cache
from kserve_lmcache.connector.reporter import configuration_file
from kserve_lmcache.connector.token_metrics import TokenMetrics
from kserve_lmcache.connector.traces import Headers, span
from kserve_lmcache.connector.usage import LoadedTokens
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.tiers.guard.load_cost import PrefillRate
from kserve_lmcache.tiers.guard.tier import LOADS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kserve_lmcache.connector.caches import WorkerCache

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

    Attributes:
        containment: counts and logs what the cache raises in this process.
    """

    _cache: WorkerCache

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        # vLLM creates the connector once it knows how large a KV cache fits.
        start_up_timing.reached(start_up_timing.LOADED)
        self.containment = ErrorContainment()
        self._proof = ""  # what was proven at the start; empty until then
        self._device = vllm_config.device_config.device_type
        self._block_size = vllm_config.cache_config.block_size
        parallel = vllm_config.parallel_config
        self._rank = engine_number(vllm_config) * parallel.world_size + parallel.rank
        extra_config = vllm_config.kv_transfer_config.kv_connector_extra_config
        self._is_steered = bool(extra_config.get(STEERED))
        self._quotas: Mapping[str, int] = extra_config.get(QUOTAS) or {}
        self._control: Control | None = None
        # What the cache does in the current step; None where it takes no part in the step.
        self._work: Any = None
        # Set anew when the cache is known.
        self._results = LoadResults(LoadQueue(LOADS, 0, self._device))
        self._prefill = PrefillRate()
        self._lock = threading.Lock()  # of what follows
        self._loaded: dict[str, Mapping[str, int]] = {}
        self._token_metrics = TokenMetrics((), 0, False, self._prefill)
        try:
            with use_all_cores(self._device):
                self._cache = worker_cache(vllm_config, kv_cache_config)
        except Exception as error:
            self.containment.give_up("__init__", error)

    def shutdown(self) -> None:
        """Stop the cache, after the loads that run.

        LMCache's threads run even where it was given up after its start.
        """
        self._results.queue.close(_SHUTDOWN_WAIT)
        try:
            if self._control is not None:
                self._control.close()
            if hasattr(self, "_cache"):
                self._cache.stop()
        except Exception as error:
            self.containment.record("shutdown", error)

    @contained(lambda self, kv_caches: None)
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Give the cache the paged KV cache: one tensor a layer, by the layer's name."""
        try:
            with use_all_cores(self._device):
                self._proof = self._cache.register(kv_caches, self.containment.record)
            cache, max_bytes = self._cache, int(_MAX_SHARE * self._cache.local_bytes)
            self._token_metrics = TokenMetrics(
                cache.tier_names, cache.chunk_tokens, cache.is_first, self._prefill
            )
            self._results = LoadResults(LoadQueue(LOADS, max_bytes, self._device))
            cache.set_prefill(self._prefill)
            cache.set_metrics()
            self._steer()
        except Exception as error:
            self.containment.give_up("register_kv_caches", error)

    @contained(lambda self: None)
    def _steer(self) -> None:
        """Keep the quotas, and let the server steer the cache, where it has the routes.

        A server on another machine cannot.
        """
        if not self._is_steered and not self._quotas:
            return
        steering = self._cache.steering(f"worker {self._rank}", self._quotas)
        file = configuration_file()
        if self._is_steered and steering and file is not None and file.parent.is_dir():
            self._control = Control(socket_path(file.parent, self._rank), steering)

    @contained(lambda self, connector_metadata: self._begin_without_cache(connector_metadata))
    def bind_connector_metadata(self, connector_metadata: ConnectorMetadata) -> None:
        """Begin a step."""
        self._results.begin_step(connector_metadata)
        self._prefill.end_step()
        self._prefill.begin_step(connector_metadata.tokens)
        self._cache.begin_step(connector_metadata.cache)
        self._work = connector_metadata.cache

    def has_connector_metadata(self) -> bool:
        """Whether the cache takes part in the current step."""
        return self._work is not None

    @contained(lambda self, forward_context, **_: None)
    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Begin to load all that the step asks for.

        vLLM calls this before the step's computation, and since 0.32 after it.
        """
        step = self._results.step
        for load in step.loads:
            self._begin_load(load)
        self._unpin(step.unpinned)
        if self._work is not None:
            self._cache.start_load(forward_context, **kwargs)

    @contained(lambda self, layer_name: None)
    def wait_for_layer_load(self, layer_name: str) -> None:
        """Let the cache continue after a layer. Nothing is loaded layer by layer."""
        self._cache.wait_for_layer(layer_name)

    @contained(lambda self, *_, **__: self._drop_saves())
    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **kwargs: Any,
    ) -> None:
        """Begin to save a layer."""
        self._cache.save_layer(layer_name, kv_layer, attn_metadata, **kwargs)

    @contained(lambda self: self._drop_saves())
    def wait_for_save(self) -> None:
        """Save the chunks that this step completed."""
        if self._work is not None:
            began, saved = time.monotonic(), self._traced_saves()
            self._cache.save()
            self._export_saves(saved, began)

    @contained(lambda self, finished_req_ids: (None, self._results.finished_requests() or None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose saves ended, and requests whose loads ended, loaded or not."""
        self._unpin(self._results.queue.cancel(finished_req_ids))
        if not self._results.step.tokens:
            self._results.queue.wait(_IDLE_WAIT)
        sent, received = self._cache.finished(finished_req_ids)
        return sent, (received or set()) | self._results.finished_requests() or None

    @contained(lambda self: self._results.missing_blocks())
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of the loads that ended, and that are not loaded. vLLM computes them."""
        return self._cache.load_errors() | self._results.missing_blocks()

    @contained(lambda self: self._end_without_cache())
    def clear_connector_metadata(self) -> None:
        """End the step."""
        self._cache.end_step()
        self._end_without_cache()

    @contained(lambda self: None)
    def set_metrics(self) -> None:
        """Publish the gauges of this process."""
        self._cache.set_metrics()

    def take_loaded(self) -> LoadedTokens | None:
        """The tokens that were loaded since the last call, by request and tier."""
        with self._lock:
            loaded, self._loaded = self._loaded, {}
        return LoadedTokens(loaded) if loaded else None

    def state(self) -> dict[str, Any]:
        """This worker's part of the snapshot (:mod:`kserve_lmcache.metrics.snapshots`)."""
        return {
            "rank": self._rank,
            "failure": self._failure(),
            "tiers": self._tier_reports(),
            "proof": self._proof,
            "form": self._form(),
            "moments": start_up_timing.moments(),
        }

    @contained(lambda self: {})
    def effective_config(self) -> dict[str, Any]:
        """The configuration that the cache uses; empty where the cache does not work."""
        return dict(self._cache.effective_config())

    @contained(lambda self: {})
    def _tier_reports(self) -> dict[str, Any]:
        return dict(self._cache.tiers())

    @contained(lambda self: {})
    def _form(self) -> dict[str, Any]:
        return dict(self._cache.form())

    @contained(lambda self: self.containment.failure or "the cache does not tell its state")
    def _failure(self) -> str:
        return self._cache.failure()

    def _begin_without_cache(self, metadata: ConnectorMetadata) -> None:
        self._results.begin_step(metadata)
        self._work = None

    def _end_without_cache(self) -> None:
        self._results.end_step()
        self._work = None

    @contained(lambda self, load: None)
    def _begin_load(self, load: Load) -> None:
        if load.source is None:
            self._unpin((load.request_id,))
            return
        size = len(load.blocks) * self._block_size * self._cache.token_bytes()
        headers = self._results.step.traces.get(load.request_id)
        # The blocks may have been another request's, which an accelerator may still compute.
        after = fence(self._device)
        run = functools.partial(self._load, load, headers, after)
        self._results.begin(load, size, run)

    @contained(lambda self, load, *_: load.blocks)
    def _load(self, load: Load, headers: Headers | None, after: Any) -> Collection[int]:
        """Load the blocks of a request; returns those that are missing."""
        if after is not None:
            after.synchronize()
        began = time.monotonic()
        loaded = self._cache.load(load)
        missing = loaded.missing & set(load.blocks)
        tokens = (len(load.blocks) - len(missing)) * self._block_size
        seconds = time.monotonic() - began
        sources = self._token_metrics.count_load(tokens, seconds, loaded.read)
        if self._cache.is_first:
            with self._lock:
                self._loaded[load.request_id] = sources
        if headers:
            span(
                "load",
                headers,
                began,
                tokens=tokens,
                bytes=tokens * self._cache.token_bytes(),
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

    @contained(lambda self: setattr(self, "_work", None))
    def _drop_saves(self) -> None:
        if self._work is not None:
            self._cache.drop_saves()

    @contained(lambda self: {})
    def _traced_saves(self) -> dict[str, int]:
        """The number of tokens that this step saves, by traced request.

        LMCache changes its metadata while it saves, so this is called before.
        """
        if not (traces := self._results.step.traces):
            return {}
        saved = self._cache.saved_tokens()
        return {name: tokens for name, tokens in saved.items() if name in traces}

    @contained(lambda self, saved, began: None)
    def _export_saves(self, saved: dict[str, int], began: float) -> None:
        """Export a span for each traced save. Each has the duration of all saves of the step."""
        for name, tokens in saved.items():
            size = tokens * self._cache.token_bytes()
            span("store", self._results.step.traces[name], began, tokens=tokens, bytes=size)

    @contained(lambda self, requests: None)
    def _unpin(self, requests: Iterable[str]) -> None:
        self._cache.unpin(requests)
