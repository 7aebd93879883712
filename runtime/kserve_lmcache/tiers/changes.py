"""What changed in the tiers of a worker since it was told last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

# The parts of LMCache's key: model, number of workers, worker, hash, data type, and then the tags.
_HASH, _TAGS = 3, 5

# Takes the key of a chunk, and whether the tier has the chunk now. Does not raise.
OnChange = Callable[[str, bool], None]


def chunk_of(key: str) -> str:
    """The name of a chunk, which is the same in all workers: its hash and its tags.

    Args:
        key: LMCache's key of the chunk, as text.

    Returns:
        The name; empty for text that is no key.
    """
    parts = key.split("@")
    return "@".join([parts[_HASH], *parts[_TAGS:]]) if len(parts) >= _TAGS else ""


class TierChanges:
    """The difference between what the tiers have and what :meth:`take` has told of them.

    A chunk that came and went since then is no change. The memory that this takes is bounded by
    the number of chunks in the tiers. Safe to use from several threads; :meth:`set` never waits for
    anything but this class.
    """

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self._lock = threading.Lock()
        self._told: set[tuple[str, str]] = set()
        self._changed: dict[tuple[str, str], bool] = {}

    def of(self, tier: str) -> OnChange:
        """What takes the changes of a tier."""

        def set_key(key: str, present: bool) -> None:
            if chunk := chunk_of(key):
                self.set(tier, chunk, present)

        return set_key

    def set(self, tier: str, chunk: str, present: bool) -> None:
        """Record whether a tier has a chunk."""
        entry = (tier, chunk)
        with self._lock:
            if (entry in self._told) == present:
                self._changed.pop(entry, None)
                return
            self._changed[entry] = present
        self.arrived.set()

    def repeat(self) -> None:
        """Let :meth:`take` tell all that the tiers have, as if nothing had been told."""
        with self._lock:
            there = dict.fromkeys(self._told, True)
            for entry, present in self._changed.items():
                there.pop(entry, None)
                if present:
                    there[entry] = True
            self._told, self._changed = set(), there
        self.arrived.set()

    def take(self) -> Mapping[tuple[str, str], bool]:
        """The changes since the last call, in their order: by tier and chunk, whether it is there.

        The caller must tell them.
        """
        self.arrived.clear()
        with self._lock:
            changed, self._changed = self._changed, {}
            for entry, present in changed.items():
                if present:
                    self._told.add(entry)
                else:
                    self._told.discard(entry)
        return changed
