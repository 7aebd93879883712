"""Steers LMCache's local tier of a worker and the tiers below it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kserve_lmcache.compat.lmcache.local_tier import LocalTier
from kserve_lmcache.connector.inprocess.pins import FullError, Pins
from kserve_lmcache.connector.inprocess.quota import LocalQuota
from kserve_lmcache.connector.steering import Answer
from kserve_lmcache.identity import tag as tags
from kserve_lmcache.identity.tag import Selection, Tag
from kserve_lmcache.tiers.guard.bars import Bars, Takes
from kserve_lmcache.tiers.guard.listing import Usage
from kserve_lmcache.tiers.guard.store import StoreError, StoreFullError

if TYPE_CHECKING:
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.cache_engine import LMCacheEngine

    from kserve_lmcache.tiers.guard.tier import Tier
    from kserve_lmcache.tiers.plugin import TierConnector

logger = logging.getLogger(__name__)

LOCAL = "local_cpu"
PIN_SHARE = 0.5  # of a tier that may be pinned
_HELD_SECONDS = 10.0  # that a deletion waits for loads and writes that hold a chunk
_PUT_BACK_SECONDS = 1.0  # that LMCache takes to put a chunk into the local tier, at most
_FETCHED = 16  # chunks that a prefetch loads at a time


class InProcessSteering:
    """Implements :class:`~kserve_lmcache.connector.steering.Steering`.

    Args:
        engine: LMCache's of the worker.
        connectors: of the tiers below the local one, by name.
        local_bytes: the size of the local tier.
        place: of the local tier: a name that no other worker has.
        quotas: the bytes that one tenant may fill, by tier.
    """

    def __init__(
        self,
        engine: LMCacheEngine,
        connectors: Mapping[str, TierConnector],
        local_bytes: int,
        place: str,
        quotas: Mapping[str, int],
    ) -> None:
        self._connectors = connectors
        self._chunk_tokens = int(engine.config.chunk_size)
        self._place = place
        self._bars = Bars()
        for tier in self._tiers.values():
            tier.bars = self._bars
        local = quotas.get(LOCAL)
        self._quota = None if local is None else LocalQuota(lambda: self._local, local)
        self._local = LocalTier(engine, self._admits)
        for name, size in quotas.items():
            if name in self._tiers:
                self._tiers[name].set_quota(lambda: self._local.worker, size)
        self._pins = Pins(self._local, int(PIN_SHARE * local_bytes))

    @property
    def _tiers(self) -> Mapping[str, Tier]:
        return {name: connector.tier for name, connector in self._connectors.items()}

    def usage(self, selection: Selection) -> Answer:
        """What each tier has."""
        found: dict[Tag, Usage] = {}
        for key, size, age in self._local.chunks():
            tag = _tag_of(key)
            if tag in selection:
                found.setdefault(tag, Usage()).add(size, age)
        local = {"place": self._place, "tags": _rows(found)}
        return {LOCAL: local, **self._below(functools.partial(self._usage, selection))}

    def delete(self, selection: Selection) -> Answer:
        """Delete chunks from every tier."""
        worker = self._local.worker

        def local() -> Collection[CacheEngineKey]:
            return [key for key, _, _ in self._local.chunks() if _tag_of(key) in selection]

        def below(tier: Tier) -> Mapping[str, Any]:
            return {"chunks": tier.steering.delete(worker, selection)}

        return self._deleted(functools.partial(tags.takes, selection), local, below)

    def delete_prompt(self, tokens: Sequence[int], tag: str) -> Answer:
        """Delete the chunks of a prompt from every tier."""
        keys = self._local.keys_of(tokens, tags.NAME, tag)
        names = [key.to_string() for key in keys]

        def below(tier: Tier) -> Mapping[str, Any]:
            return {"chunks": tier.steering.delete_keys(names)}

        return self._deleted(frozenset(names).__contains__, lambda: keys, below)

    def prefetch(self, tokens: Sequence[int], tag: str) -> Answer:
        """Load the whole chunks of a prompt into the local tier."""
        keys = self._whole_chunks(tokens, tag)
        # The last first: LMCache's eviction begins with the chunks that came first.
        for begin in reversed(range(0, len(keys), _FETCHED)):
            self._fetch(keys[begin : begin + _FETCHED])
        there = sum(map(self._local.has, keys))
        return {LOCAL: {"chunks": there, "of": len(keys)}}

    def pin(self, tokens: Sequence[int], tag: str, seconds: float, reason: str = "") -> Answer:
        """Keep the whole chunks of a prompt in each tier that has them."""
        keys = self._whole_chunks(tokens, tag)
        names = [key.to_string() for key in keys]
        if seconds > 0:
            barred = {key for key in keys if key.to_string() in self._bars}
            try:
                kept = [key for key in keys if key not in barred]
                chunks, size = self._pins.pin(kept, seconds, reason)
                local = {"chunks": chunks, "bytes": size, "of": len(keys)}
            except FullError:
                return {LOCAL: {"chunks": 0, "bytes": 0, "of": len(keys), "is_full": True}}
        else:
            self._pins.unpin(keys)
            local = {"chunks": 0, "bytes": 0, "of": len(keys)}

        def below(tier: Tier) -> Mapping[str, Any]:
            return {"chunks": tier.steering.hold(names, seconds)}

        return {LOCAL: local, **self._below(below)}

    def unpin(self, tokens: Sequence[int], tag: str, reason: str) -> Answer:
        """Take back a pin of the local tier. A file and a value may last longer."""
        self._pins.unpin(self._whole_chunks(tokens, tag), reason)
        return {LOCAL: {}}

    def _whole_chunks(self, tokens: Sequence[int], tag: str) -> list[CacheEngineKey]:
        whole = len(tokens) // self._chunk_tokens * self._chunk_tokens
        return self._local.keys_of(tokens[:whole], tags.NAME, tag)

    def _fetch(self, keys: Sequence[CacheEngineKey]) -> None:
        for connector in self._connectors.values():
            missing = [key for key in keys if not self._local.has(key)]
            while missing:
                # A load ends at the first chunk that the tier does not have.
                loaded = connector.fetch(missing)
                for key, memory in zip(missing, loaded, strict=False):
                    self._local.put(key, memory)
                missing = missing[len(loaded) + 1 :]

    def _deleted(
        self,
        selected: Takes,
        local: Callable[[], Collection[CacheEngineKey]],
        below: Callable[[Tier], Mapping[str, Any]],
    ) -> Answer:
        """Delete chunks, which are barred meanwhile."""
        with self._bars.up(selected, self._late_seconds):
            # The queues of writes hold chunks of the local tier, so the other tiers come first.
            answer = self._below(below)
            # By now, a pin that began before the bar was up is there.
            self._pins.unpin_if(lambda key: selected(key.to_string()))
            removed, held = self._local.erase(local(), _HELD_SECONDS)
        of_local: dict[str, Any] = {"chunks": removed}
        if held:
            of_local["error"] = f"requests still hold {held} chunks"
        return {LOCAL: of_local, **answer}

    def _late_seconds(self) -> float:
        """How long a load may still put back what it read before a deletion."""
        if not self._tiers:
            return 0.0
        running = (tier.fetch_seconds for tier in self._tiers.values() if tier.is_loading)
        return max(running, default=0.0) + _PUT_BACK_SECONDS

    def _usage(self, selection: Selection, tier: Tier) -> Mapping[str, Any]:
        # A directory has the files of all workers that use it; a store is asked for this worker's.
        place = tier.address if tier.name == "disk" else self._place
        found = tier.steering.usage(self._local.worker, selection)
        return {"place": place, "tags": _rows(found)}

    def _below(self, ask: Callable[[Tier], Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """The answer of each tier below the local one."""
        answers: dict[str, Mapping[str, Any]] = {}
        for name, tier in self._tiers.items():
            try:
                answers[name] = ask(tier)
            except StoreError as error:
                logger.warning("The %s tier could not do what the server asked: %s", name, error)
                answers[name] = {"error": str(error), "is_full": isinstance(error, StoreFullError)}
        return answers

    def _admits(self, key: CacheEngineKey, size: int) -> bool:
        if key.to_string() in self._bars:
            return False
        return self._quota is None or self._quota.admits(key, size)


def _tag_of(key: CacheEngineKey) -> Tag:
    return tags.of_key(key.to_string()) or Tag()


def _rows(found: Mapping[Tag, Usage]) -> list[list[Any]]:
    return [
        [tag.salt, tag.tenant, tag.adapter, usage.chunks, usage.bytes, usage.oldest]
        for tag, usage in found.items()
    ]
