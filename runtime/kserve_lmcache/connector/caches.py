"""What the connector asks of a cache, in the scheduler's process and in each worker.

There are two: LMCache's cache engine in the workers' own processes (:mod:`.inprocess`), and a cache
server beside the engine (:mod:`.multiprocess`). What both need stands around them: loads beside the
steps, isolation, containment of errors, reports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from kserve_lmcache.connector.metadata import Load
    from kserve_lmcache.connector.steering import Steering
    from kserve_lmcache.tiers.guard.load_cost import PrefillRate

OnError = Callable[[str, Exception], None]


class SchedulerCache(Protocol):
    """A cache in the scheduler's process. Every method may raise.

    Attributes:
        tags_reach_keys: whether what :mod:`.isolation` puts into a request's tag reaches the keys.
    """

    tags_reach_keys: bool

    def look_up(self, request: Request, computed_tokens: int) -> int | None:
        """The number of tokens to load beyond those that vLLM has.

        Args:
            request: a request that waits.
            computed_tokens: what vLLM has of its prompt.

        Returns:
            The number; ``None`` where it is not known yet. The scheduler asks again in its next
            step.
        """

    def compute(self, request: Request, computed_tokens: int) -> None:
        """Load nothing for a request, and store what it computes."""

    def allocated(
        self, request: Request, blocks: KVCacheBlocks, tokens: int, load_failed: bool
    ) -> Any:
        """Take note of a request's blocks, and return the source of its load.

        Args:
            request: to be loaded, or to be computed.
            blocks: all of the request.
            tokens: the number of tokens to load; 0 where the request is computed.
            load_failed: whether an earlier load of the request failed.
        """

    def build(self, output: SchedulerOutput) -> Any:
        """What the workers' caches do in a step."""

    def update(self, output: KVConnectorOutput) -> None:
        """Take note of the results of a step."""

    def finished(
        self, request: Request, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Take note of the end of a request. Returns what vLLM's connectors do."""

    def forget(self, request_id: str, hidden: bool) -> None:
        """Remove a request that has ended.

        Args:
            request_id: the request.
            hidden: whether :meth:`finished` was not called.
        """

    def set_workers(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take the workers' parts of their first snapshots, by rank."""

    def failure(self) -> str:
        """Why the cache does not work in this process; empty when it works."""

    def stop(self) -> None:
        """End the cache's threads in this process."""


@dataclass(frozen=True)
class Loaded:
    """The result of a load.

    Attributes:
        missing: blocks that are not, or not wholly, loaded.
        read: the number of chunks that each tier below the local one read for it.
    """

    missing: set[int]
    read: Mapping[str, int] = field(default_factory=dict)


class WorkerCache(Protocol):
    """A cache in a worker's process. Every method may raise."""

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""

    @property
    def is_first(self) -> bool:
        """Whether this is the engine's first worker."""

    @property
    def local_bytes(self) -> int:
        """The size of the local tier that this worker uses."""

    @property
    def tier_names(self) -> Collection[str]:
        """The names of the tiers below the local one."""

    def register(self, kv_caches: dict[str, torch.Tensor], on_error: OnError) -> str:
        """Use this KV cache from now on, and prove that what is stored comes back.

        Args:
            kv_caches: a tensor for each layer, by the layer's name.
            on_error: takes the name of a call that failed in a thread of the cache's, and the
                exception.

        Returns:
            What was proven, in words; empty where the cache does not work.
        """

    def begin_step(self, work: Any) -> None:
        """Begin a step. ``work`` is the result of :meth:`.SchedulerCache.build`."""

    def start_load(self, forward_context: ForwardContext, **options: Any) -> None:
        """VLLM is about to compute, or has begun to."""

    def wait_for_layer(self, layer_name: str) -> None:
        """VLLM is about to compute a layer."""

    def save_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **options: Any,
    ) -> None:
        """VLLM has computed a layer."""

    def save(self) -> None:
        """Store the chunks that the step completed."""

    def saved_tokens(self) -> Mapping[str, int]:
        """The number of tokens that :meth:`save` stores, by request."""

    def drop_saves(self) -> None:
        """Store nothing in this step."""

    def end_step(self) -> None:
        """End the step."""

    def finished(self, requests: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """As vLLM's ``get_finished``: requests whose saves ended, and whose loads ended."""

    def load_errors(self) -> set[int]:
        """Blocks that the cache failed to load by itself, not by :meth:`load`."""

    def load(self, load: Load) -> Loaded:
        """Load the blocks of a request. Several threads call this at a time."""

    def token_bytes(self) -> int:
        """Bytes of one token's KV in this worker."""

    def unpin(self, requests: Iterable[str]) -> None:
        """Release what lookups hold for requests that are not loaded."""

    def set_metrics(self) -> None:
        """Publish the gauges of this process."""

    def tiers(self) -> Mapping[str, Mapping[str, Any]]:
        """Reports of the tiers, by name."""

    def set_prefill(self, prefill: PrefillRate) -> None:
        """Take what measures the speed at which the engine computes prompts."""

    def effective_config(self) -> Mapping[str, Any]:
        """The configuration that is used, key by key."""

    def steering(self, place: str, quotas: Mapping[str, int]) -> Steering | None:
        """What does something for a person beside the steps; ``None`` where nothing does.

        Args:
            place: a name that no other worker has.
            quotas: the bytes that one tenant may fill, by tier.
        """

    def form(self) -> Mapping[str, Any]:
        """What the scheduler's cache has to know of this worker's KV cache; empty for nothing."""

    def failure(self) -> str:
        """Why the cache does not work in this process; empty when it works."""

    def stop(self) -> None:
        """End the cache's threads in this process."""
