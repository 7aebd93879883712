"""LMCache's engine over our tiers; its KV cache holds random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.cache_engine import LMCacheEngine

from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import DISK_PLUGIN, REMOTE_PLUGIN, TierPlugin
from kserve_lmcache.identity.tag import NAME
from kserve_lmcache.tiers.guard.tier import Tier
from kserve_lmcache.tiers.plugin import TierConnector
from tests.support.lmcache_engine import (
    BLOCK,
    BLOCKS,
    CHUNK,
    HEAD_SIZE,
    HEADS,
    LAYERS,
    an_engine,
    use,
)
from tests.support.waiting import until

CHUNKS = 4
TOKENS = CHUNKS * CHUNK
# On a busy machine the usual deadlines pass; they are tested where they matter.
PATIENT = TierLimits(lookup=5, load=20)

Pages = list[torch.Tensor]


@dataclass(frozen=True)
class Replica:
    """One engine.

    Attributes:
        connectors: of its tiers, by name.
    """

    engine: LMCacheEngine
    connectors: dict[str, TierConnector]

    @property
    def connector(self) -> TierConnector:
        """That of the last tier."""
        return list(self.connectors.values())[-1]

    @property
    def tier(self) -> Tier:
        """The last one."""
        return self.connector.tier

    def count(self, name: str, tier: str | None = None) -> Any:
        """From the report of a tier; by default the last one's."""
        connector = self.connector if tier is None else self.connectors[tier]
        return connector.tier.report()[name]

    def store(self, tokens: torch.Tensor, source: Pages, tag: str = "") -> None:
        """Store what the pages hold of the tokens, and wait until every tier has it."""

        def written() -> list[int]:
            counts = ("chunks_written", "chunks_known")
            return [sum(self.count(count, tier) for count in counts) for tier in self.connectors]

        before = written()
        slots = torch.arange(len(tokens))
        use(self.engine, source)
        self.engine.store(
            tokens,
            kvcaches=source,
            slot_mapping=slots,
            req_id="store",
            request_configs=_configs(tag),
        )
        until(lambda: written() == [count + len(tokens) // CHUNK for count in before])

    def load(self, tokens: torch.Tensor, tag: str = "") -> tuple[int, int, Pages]:
        """Tokens that a lookup finds, tokens that come, and the pages."""
        target = [torch.zeros_like(layer) for layer in pages(0)]
        configs = _configs(tag)
        found = self.engine.lookup(tokens, lookup_id="load", pin=True, request_configs=configs)
        slots = torch.arange(len(tokens))
        use(self.engine, target)
        mask = self.engine.retrieve(
            tokens,
            kvcaches=target,
            slot_mapping=slots,
            req_id="load",
            request_configs=configs,
        )
        self.engine.lookup_unpin("load")
        return found, int(mask.sum()), target

    def keys(self, tokens: torch.Tensor, tag: str = "") -> list[CacheEngineKey]:
        chunks = self.engine.token_database.process_tokens(
            tokens=tokens, request_configs=_configs(tag)
        )
        return [key for _, _, key in chunks]


def _configs(tag: str) -> dict[str, str] | None:
    return {NAME: tag} if tag else None


@contextmanager
def replica(
    remote: Remote | None,
    local_gib: float = 0.05,
    limits: TierLimits = PATIENT,
    disk: Disk | None = None,
    **settings: Any,
) -> Iterator[Replica]:
    """An engine whose stores answer. ``PYTHONHASHSEED`` must be set."""
    stores: list[tuple[TierPlugin[Any], Any]] = [(DISK_PLUGIN, disk), (REMOTE_PLUGIN, remote)]
    stores = [(plugin, store) for plugin, store in stores if store is not None]
    extra_config: dict[str, Any] = {}
    for plugin, store in stores:
        extra_config |= plugin.encode(store, limits)
    with an_engine(
        "replica",
        pre_caching_hash_algorithm="sha256_cbor",
        max_local_cpu_size=local_gib,
        remote_storage_plugins=[plugin.name for plugin, _ in stores],
        remote_serde="naive",
        extra_config=extra_config,
        **settings,
    ) as engine:
        backends = engine.storage_manager.storage_backends
        connectors = {
            plugin.tier: backends[f"RemoteBackend-{plugin.name}"].connection.getWrappedConnector()
            for plugin, _ in stores
        }
        for connector in connectors.values():
            until(lambda tier=connector.tier: tier.report()["up"])  # type: ignore[misc]
        yield Replica(engine, connectors)


def pages(seed: int) -> Pages:
    """A paged KV cache of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BLOCKS, HEADS, BLOCK, 2 * HEAD_SIZE)
    return [torch.randn(shape, generator=generator) for _ in range(LAYERS)]


def prompt(number: int, length: int = TOKENS) -> torch.Tensor:
    """Tokens that share no prefix with those of another number."""
    return torch.arange(length) + 1000 * number


def alike(one: Pages, other: Pages, tokens: int = TOKENS) -> bool:
    """Whether the first ``tokens`` of both are equal to the last bit."""
    rows = (
        [layer.transpose(1, 2).flatten(0, 1)[:tokens] for layer in each] for each in (one, other)
    )
    return all(torch.equal(a, b) for a, b in zip(*rows, strict=True))
