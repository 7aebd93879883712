"""Pending loads: the scheduler's record of loads that have not ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kserve_lmcache.connector.metadata import Load

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass(frozen=True)
class _PendingLoad:
    load: Load
    hashes: frozenset[Any]


class PendingLoads:
    """The loads of requests from the allocation of their blocks until the requests are computed.

    A request that waits for its load holds blocks. VLLM asks about requests in the order in which
    it would compute them, and stops at the first request that gets no blocks. When that request
    stands before the requests that hold the blocks, none of them ever moves. So a request that
    could be in the way of others waits, and no load begins for a request behind it until vLLM has
    asked about all requests again.

    Args:
        block_size: tokens of one block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._computed_tokens: dict[str, int] = {}
        self._new: list[Load] = []
        self._running: dict[str, _PendingLoad] = {}
        self._ended: set[str] = set()
        self._failed: set[str] = set()
        self._a_request_waits = False

    def must_wait(self, request: Request) -> bool:
        """Whether other requests have to be computed before this one.

        These are the requests whose load has ended, and the requests for which a part of this
        request's prompt is being loaded. VLLM shares the loaded blocks with this request.
        """
        self._ended.discard(request.request_id)  # its load failed wholly: it holds no blocks
        waits = bool(self._ended) or any(
            not pending.hashes.isdisjoint(request.block_hashes)
            for pending in self._running.values()
        )
        self._a_request_waits |= waits
        return waits

    def may_load(self, request: Request, computed_tokens: int) -> bool:
        """Whether a load of a request may begin in this step.

        Args:
            request: a request of which LMCache has more tokens than vLLM.
            computed_tokens: the tokens that vLLM has.
        """
        self._computed_tokens[request.request_id] = computed_tokens
        return not self._a_request_waits

    def add(self, request: Request, blocks: Sequence[int], tokens: int) -> Load:
        """Begin the load of ``tokens`` tokens of a request, whose blocks are ``blocks``.

        Returns:
            The load, which has no source yet.
        """
        # Without a call of may_load, from the prompt's first token.
        computed = self._computed_tokens.pop(request.request_id, 0)
        first, end = computed // self._block_size, -(-(computed + tokens) // self._block_size)
        load = Load(request.request_id, tuple(blocks[first:end]))
        self._new.append(load)
        self._running[request.request_id] = _PendingLoad(
            load, frozenset(request.block_hashes[first:end])
        )
        return load

    def take_new(self) -> list[Load]:
        """The loads that have begun since the last call. VLLM has asked about all requests."""
        self._a_request_waits = False
        new, self._new = self._new, []
        return new

    def end(self, requests: Iterable[str], failed_blocks: AbstractSet[int]) -> None:
        """Record that the loads of ``requests`` have ended, and that blocks failed to load.

        A load has ended when it has ended in all workers. A worker reports its failed blocks when
        the load ends in that worker, which may be earlier.
        """
        if failed_blocks:
            for request_id, pending in self._running.items():
                if not failed_blocks.isdisjoint(pending.load.blocks):
                    self._failed.add(request_id)
        for request_id in requests:
            if self._running.pop(request_id, None) is not None:
                self._ended.add(request_id)

    def compute(self, request_id: str) -> None:
        """Record that the next step computes a request."""
        self._ended.discard(request_id)

    def has_failed(self, request_id: str) -> bool:
        """Whether a load of the request failed. A request is loaded once at most then."""
        return request_id in self._failed

    def forget(self, request_id: str) -> None:
        """Remove a finished request."""
        self._computed_tokens.pop(request_id, None)
        self._running.pop(request_id, None)
        self._ended.discard(request_id)
        self._failed.discard(request_id)
