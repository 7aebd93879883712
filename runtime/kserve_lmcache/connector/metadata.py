"""What the scheduler's connector tells the workers', step by step."""

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
    """What to load.

    Attributes:
        tokens: up to the last that is loaded; a whole number of LMCache's chunks.
        computed_tokens: the first of them, which vLLM has.
        blocks: of all ``tokens``, in their order.
        request_configs: what LMCache puts into the keys beside the tokens.
    """

    tokens: list[int]
    computed_tokens: int
    blocks: Sequence[int]
    request_configs: dict[str, str] | None


@dataclass
class Load:
    """One request's, all in one step.

    Attributes:
        request_id: the request's.
        blocks: that vLLM waits for, to be loaded or reported.
        source: ``None`` when it could not be told; then they are reported.
    """

    request_id: str
    blocks: tuple[int, ...]
    source: Source | None = None


@dataclass
class Step(KVConnectorMetadata):  # type: ignore[misc]
    """From the scheduler to the workers.

    Attributes:
        lmcache: LMCache's own metadata; ``None`` when it could not be built.
        loads: that have to be settled in this step.
        dropped: requests whose chunks LMCache need not hold any longer.
        tokens: that are computed in this step.
        traces: headers of the traced requests among those that are loaded or computed.
    """

    lmcache: KVConnectorMetadata | None
    loads: Sequence[Load] = ()
    dropped: Collection[str] = ()
    tokens: int = 0
    traces: Mapping[str, Headers] = field(default_factory=dict)


def without(output: SchedulerOutput, requests: AbstractSet[str]) -> SchedulerOutput:
    """The same step as though ``requests`` were not in it; ``output`` itself stays as it is."""
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
