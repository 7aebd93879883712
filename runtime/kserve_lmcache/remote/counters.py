"""What happened in the remote tier, counted."""

from __future__ import annotations

import threading

# Every name, with its meaning; a count of bytes ends in "bytes".
NAMES = {
    "lookups": "prompts that the store was asked for",
    "lookup_hits": "chunks that it had of them",
    "lookups_skipped": "prompts that it was not asked for, since it does not answer",
    "loads": "prompts whose chunks were read",
    "loads_skipped": "prompts that are computed sooner than they would be read",
    "chunks_read": "chunks read, and right",
    "bytes_read": "their bytes",
    "chunks_missing": "chunks that were gone between lookup and read",
    "chunks_late": "chunks that did not come in time, or whose read failed",
    "chunks_corrupt": "chunks that were not what was stored, and are deleted or written anew",
    "chunks_without_room": "chunks that the local tier had no room for",
    "chunks_written": "chunks written",
    "bytes_written": "their bytes",
    "chunks_known": "chunks not written, since the store has them",
    "dropped_queue": "chunks not written, since the queue was full",
    "dropped_full": "chunks not written, since the store is full",
    "dropped_failed": "chunks whose write failed",
    "failures": "calls of the store that failed or took too long",
    "exceptions": "mistakes of ours, each of them logged",
    "connects": "times that the store began to answer",
    "opened": "times that it was given up",
}


class Counters:
    """Counts by name; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(NAMES, 0)

    def add(self, name: str, count: int = 1) -> None:
        """Count ``count`` more.

        Raises:
            KeyError: no such name.
        """
        with self._lock:
            self._counts[name] += count

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        """All counts."""
        with self._lock:
            return dict(self._counts)
