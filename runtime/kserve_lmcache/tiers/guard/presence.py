"""Which chunks a remote store has, of those that this process has written or found there.

No store tells what it loses: by its time to live, by eviction, by a restart. So it is asked.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from kserve_lmcache.tiers.changes import OnChange
from kserve_lmcache.tiers.guard.daemon_threads import start_supervised

if TYPE_CHECKING:
    from kserve_lmcache.tiers.guard.tier import Tier

_PASS_SECONDS = 1.0  # between two looks
_ASK_SECONDS = 30.0  # after which a chunk is asked for again
_DOWN_SECONDS = 5.0  # after which nothing of a store that is down counts as present
_BATCH, _BATCHES = 500, 10  # chunks asked for in one call, and calls of one pass
_MOST = 200_000  # chunks that are remembered


class Presence:
    """Knows the chunks, and asks for each of them about every 30 seconds.

    It takes as long until a loss is known. After the store was down, all chunks are asked for.

    Args:
        tier: is asked. Tells what it writes and finds.
        on_change: takes the changes.
        on_exception: takes what nothing here should raise.
    """

    def __init__(
        self, tier: Tier, on_change: OnChange, on_exception: Callable[[Exception], None]
    ) -> None:
        self._tier = tier
        self._on_change = on_change
        self._lock = threading.Lock()
        # When each chunk was seen last. Those to ask for next come first.
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._present: set[str] = set()
        self._up_since = 0.0
        self._all_due_before = 0.0
        self._closed = threading.Event()
        tier.watch(self.note)
        start_supervised("remote-presence", self._run, on_exception)

    def note(self, keys: Sequence[str], present: bool | None) -> None:
        """Take what a call has told.

        Args:
            keys: of chunks.
            present: whether the store has them. ``None``: it may have them. A chunk that it seems
                not to have is asked for, since a write may run at the same time.
        """
        now = time.monotonic()
        with self._lock:
            for key in keys:
                if present:
                    self._seen[key] = now
                    self._seen.move_to_end(key)
                    self._tell(key, True)
                elif present is None or key in self._seen:
                    self._seen[key] = 0.0
                    self._seen.move_to_end(key, last=False)
            while len(self._seen) > _MOST:
                self._tell(self._seen.popitem(last=False)[0], False)

    def look(self) -> None:
        """Ask for the chunks that are due. Returns soon, even where some are left."""
        is_up, since = self._tier.state()
        if not is_up:
            if time.time() - since > _DOWN_SECONDS:
                with self._lock:
                    for key in list(self._present):
                        self._tell(key, False)
            return
        if since != self._up_since:
            self._up_since, self._all_due_before = since, time.monotonic()
        for _ in range(_BATCHES):
            asked = time.monotonic()
            keys = self._due(max(self._all_due_before, asked - _ASK_SECONDS))
            sizes = self._tier.sizes(keys) if keys else None
            if sizes is None:
                return
            self._note_answer(keys, sizes, asked)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_PASS_SECONDS):
            self.look()

    def _due(self, before: float) -> list[str]:
        with self._lock:
            due = takewhile(lambda item: item[1] < before, self._seen.items())
            return [key for key, _ in islice(due, _BATCH)]

    def _note_answer(self, keys: Sequence[str], sizes: Sequence[int], asked: float) -> None:
        with self._lock:
            for key, size in zip(keys, sizes, strict=True):
                if self._seen.get(key, asked) >= asked:
                    continue  # told by another call meanwhile, or forgotten
                if size:
                    self._seen[key] = asked
                    self._seen.move_to_end(key)
                else:
                    del self._seen[key]
                self._tell(key, bool(size))

    def _tell(self, key: str, present: bool) -> None:
        if present != (key in self._present):
            (self._present.add if present else self._present.discard)(key)
            self._on_change(key, present)
