"""Tells which chunks the disk has. Its files are named by digests of the chunks' keys."""

from __future__ import annotations

from collections.abc import Iterable

from kserve_lmcache.tiers.changes import OnChange
from kserve_lmcache.tiers.disk.directory import file_name
from kserve_lmcache.tiers.disk.index import DiskIndex

_MORE = 100_000  # keys that are remembered, beyond twice the number of files


class DiskNames:
    """Knows the keys of files, and tells the changes of the index by their keys.

    Args:
        index: of the files.
        on_change: takes the changes.
    """

    def __init__(self, index: DiskIndex, on_change: OnChange) -> None:
        self._index = index
        self._on_change = on_change
        self._keys: dict[str, str] = {}
        index.watch(self._on_file)

    def learn(self, keys: Iterable[str]) -> None:
        """Take keys whose files may be there, now or later."""
        for key in keys:
            name = file_name(key)
            if name not in self._keys:
                self._keys[name] = key
                self._index.tell(name)
        if len(self._keys) > 2 * len(self._index) + _MORE:
            self._keys = {
                name: key for name, key in list(self._keys.items()) if self._index.size_of(name)
            }

    def _on_file(self, name: str, present: bool) -> None:
        if key := self._keys.get(name):
            self._on_change(key, present)
