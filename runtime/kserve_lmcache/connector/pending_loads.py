"""The scheduler's side of a load."""

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
    """What vLLM waits for, from when it gave blocks for it until the request is computed.

    Requests that wait hold blocks. vLLM asks about requests in the order in which it would
    compute them, and stops at the first that gets no blocks: when that one stands before those
    that hold them, none would ever move. So one that could be in their way steps aside, and
    then nobody behind it is promised anything before it was asked about again.

    Args:
        block_size: tokens of one block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._computed: dict[str, int] = {}
        self._new: list[Load] = []
        self._open: dict[str, _PendingLoad] = {}
        self._ready: set[str] = set()
        self._broken: set[str] = set()
        self._someone_waits = False

    def must_wait(self, request: Request) -> bool:
        """Whether others have to be computed first.

        Those whose load is over; and those that some of this request is being loaded for, which
        vLLM lets it share as soon as it is there.
        """
        self._ready.discard(request.request_id)  # nothing of it was loaded: it holds no blocks
        waits = bool(self._ready) or any(
            not promise.hashes.isdisjoint(request.block_hashes) for promise in self._open.values()
        )
        self._someone_waits |= waits
        return waits

    def offer(self, request: Request, computed_tokens: int) -> bool:
        """More than the ``computed_tokens`` that vLLM has of a request can be loaded.

        Returns:
            Whether it may be, in this step.
        """
        self._computed[request.request_id] = computed_tokens
        return not self._someone_waits

    def make(self, request: Request, blocks: Sequence[int], tokens: int) -> Load:
        """VLLM waits for ``tokens`` tokens of a request whose blocks are ``blocks``.

        Returns:
            The load of the next step, still without its source.
        """
        # Without an offer, all that could have been promised.
        computed = self._computed.pop(request.request_id, 0)
        first, end = computed // self._block_size, -(-(computed + tokens) // self._block_size)
        load = Load(request.request_id, tuple(blocks[first:end]))
        self._new.append(load)
        self._open[request.request_id] = _PendingLoad(
            load, frozenset(request.block_hashes[first:end])
        )
        return load

    def take(self) -> list[Load]:
        """What was promised since the last call, when all were asked about."""
        self._someone_waits = False
        taken, self._new = self._new, []
        return taken

    def settle(self, requests: Iterable[str], failed: AbstractSet[int]) -> None:
        """The loads of ``requests`` are over; the blocks in ``failed`` were not loaded."""
        for request_id in requests:
            promise = self._open.pop(request_id, None)
            if promise is None:
                continue
            self._ready.add(request_id)
            if not failed.isdisjoint(promise.load.blocks):
                self._broken.add(request_id)

    def computed(self, request_id: str) -> None:
        """A request is computed in the next step."""
        self._ready.discard(request_id)

    def broke(self, request_id: str) -> bool:
        """Whether a load of the request failed; it is not tried again."""
        return request_id in self._broken

    def forget(self, request_id: str) -> None:
        """A request is finished."""
        self._computed.pop(request_id, None)
        self._open.pop(request_id, None)
        self._ready.discard(request_id)
        self._broken.discard(request_id)
