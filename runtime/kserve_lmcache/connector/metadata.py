"""Connector metadata: what the scheduler's connector sends to the workers in each step."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from kserve_lmcache.connector.traces import Headers

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

_BY_REQUEST = (
    "req_ids",
    "new_token_ids",
    "new_block_ids",
    "num_computed_tokens",
    "num_output_tokens",
)


@dataclass
class Load:
    """The load of one request. It begins in the step that asks for it, and ends in any later one.

    Attributes:
        request_id: the request.
        blocks: the blocks that vLLM waits for. Each is loaded, or reported as failed.
        source: what the worker's cache reads (:meth:`.SchedulerCache.allocated`); ``None`` when the
            scheduler could not determine it; all blocks fail then.
    """

    request_id: str
    blocks: tuple[int, ...]
    source: Any = None


@dataclass
class ConnectorMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """What the workers do in one step.

    Attributes:
        cache: for the worker's cache (:meth:`.SchedulerCache.build`); ``None`` when the scheduler's
            cache could not build it.
        loads: the loads of this step.
        unpinned: requests whose chunks the cache need not hold any longer.
        tokens: the number of tokens that this step computes.
        traces: headers of the traced requests among those that are loaded or computed.
    """

    cache: Any
    loads: Sequence[Load] = ()
    unpinned: Collection[str] = ()
    tokens: int = 0
    traces: Mapping[str, Headers] = field(default_factory=dict)


def without_requests(output: SchedulerOutput, requests: AbstractSet[str]) -> SchedulerOutput:
    """A copy of ``output`` without the given requests; ``output`` itself does not change."""
    if requests.isdisjoint(output.num_scheduled_tokens):
        return output
    visible = copy.copy(output)
    visible.scheduled_new_reqs = [
        new for new in output.scheduled_new_reqs if new.req_id not in requests
    ]
    cached = copy.copy(output.scheduled_cached_reqs)
    kept = [place for place, name in enumerate(cached.req_ids) if name not in requests]
    count = len(cached.req_ids)
    for name in _BY_REQUEST:
        values = getattr(cached, name)
        if len(values) == count:  # new_token_ids is empty without pipeline parallelism
            setattr(cached, name, [values[place] for place in kept])
    visible.scheduled_cached_reqs = cached
    return visible
