"""Connector metadata: what the scheduler's connector sends to the workers in each step."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class Source:
    """What a load reads.

    Attributes:
        tokens: the prompt up to the last token to load; a whole number of LMCache's chunks.
        computed_tokens: how many of ``tokens`` vLLM has already.
        blocks: the blocks of ``tokens``, in order.
        request_configs: what LMCache puts into the keys beside the tokens.
    """

    tokens: list[int]
    computed_tokens: int
    blocks: Sequence[int]
    request_configs: Mapping[str, str] | None


@dataclass
class Load:
    """The load of one request. It begins in the step that asks for it, and ends in any later one.

    Attributes:
        request_id: the request.
        blocks: the blocks that vLLM waits for. Each is loaded, or reported as failed.
        source: ``None`` when the scheduler could not determine the source; all blocks fail then.
    """

    request_id: str
    blocks: tuple[int, ...]
    source: Source | None = None


@dataclass
class ConnectorMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """What the workers do in one step.

    Attributes:
        lmcache: LMCache's own metadata; ``None`` when LMCache could not build its metadata.
        loads: the loads of this step.
        unpinned: requests whose chunks LMCache need not hold any longer.
        tokens: the number of tokens that this step computes.
        traces: headers of the traced requests among those that are loaded or computed.
    """

    lmcache: KVConnectorMetadata | None
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
