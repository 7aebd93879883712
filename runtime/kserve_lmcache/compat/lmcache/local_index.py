"""LMCache's index of the local CPU tier, and the names of chunks (LMCache 0.5.1 to 0.5.6).

``tests/integration/test_lmcache_contract.py`` fails when an upgrade changes one of the internals.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from kserve_lmcache.compat.lmcache.lookups import lookup_client_of

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl

_HASH = 3  # the place of the hash in the parts of a key


def watch_local(engine: Any, on_change: Callable[[str, bool], None]) -> None:
    """Tell from now on which chunks come into the local CPU tier, and which go.

    Every chunk goes through one mapping, under a lock. A mapping of the same type takes its place.

    Args:
        engine: LMCache's.
        on_change: takes a key as text, and whether the tier has the chunk. Calls nothing of
            LMCache.
    """
    backend = engine.storage_manager.storage_backends.get("LocalCPUBackend")
    if backend is not None:
        with backend.cpu_lock:
            backend.hot_cache = _watched(backend.hot_cache, on_change)


def _watched(
    mapping: MutableMapping[Any, Any], on_change: Callable[[str, bool], None]
) -> MutableMapping[Any, Any]:
    base: Any = type(mapping)

    class Watched(base):  # type: ignore[misc]
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            on_change(key.to_string(), True)

        def __delitem__(self, key: Any) -> None:
            super().__delitem__(key)
            on_change(key.to_string(), False)

        def pop(self, key: Any, *default: Any) -> Any:
            value = super().pop(key, *default)
            on_change(key.to_string(), False)
            return value

        def popitem(self, *which: Any, **last: Any) -> Any:
            item = super().popitem(*which, **last)
            on_change(item[0].to_string(), False)
            return item

        def clear(self) -> None:
            keys = list(self)
            super().clear()
            for key in keys:
                on_change(key.to_string(), False)

    watched = Watched()
    for key, value in mapping.items():
        watched[key] = value
    return watched


def key_maker(engine: Any) -> Callable[[str], str]:
    """What makes a key, as text, of this worker from the name of a chunk.

    A name is the hash and the tags (:func:`kserve_lmcache.tiers.changes.chunk_of`).
    """
    parts = engine.token_database._make_key_by_hash(0, None).to_string().split("@")

    def make(name: str) -> str:
        text, *tags = name.split("@")
        return "@".join([*parts[:_HASH], text, *parts[_HASH + 1 :], *tags])

    return make


def hash_maker(adapter: LMCacheConnectorV1Impl) -> Callable[[list[int]], list[str]]:
    """What computes the hashes of the chunks of a prompt, as keys have them. Takes milliseconds."""
    client = lookup_client_of(adapter)

    def make(tokens: list[int]) -> list[str]:
        found = client.token_database.process_tokens(tokens, make_key=False)
        return [text_of(each) for _, _, each in found]

    return make


def text_of(chunk_hash: int | bytes) -> str:
    """A hash as keys have it."""
    return chunk_hash.hex() if isinstance(chunk_hash, bytes) else f"{chunk_hash:x}"
