"""Counts the chunks that a tier reads for one load, among loads that run at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# LMCache calls a tier from the event loop of its own. A context variable goes along: asyncio
# takes the caller's context with ``run_coroutine_threadsafe`` and with ``to_thread``.
_COUNTS: ContextVar[Counter[str] | None] = ContextVar("read_counts", default=None)


@contextmanager
def count_reads() -> Iterator[Counter[str]]:
    """The chunks that are read for this thread in the block, by the name of their tier."""
    counts: Counter[str] = Counter()
    token = _COUNTS.set(counts)
    try:
        yield counts
    finally:
        _COUNTS.reset(token)


def add_reads(tier: str, chunks: int) -> None:
    """Count ``chunks`` chunks for the load that asked for them, if there is one."""
    if (counts := _COUNTS.get()) is not None:
        counts[tier] += chunks
