"""What goes wrong in LMCache, put into its classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lmcache.v1.cache_engine import LMCacheEngine

from kserve_lmcache.connector.multiprocess.worker_cache import MultiprocessWorkerCache


class Injected(Exception):
    """Raised by nobody else."""


def inject(
    patch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    chance: Callable[[], bool] = lambda: True,
    late: Callable[[], bool] = lambda: False,
) -> None:
    """Let ``name`` raise where ``chance`` says so; where ``late`` does, after it did its work."""
    real = getattr(where, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not chance():
            return real(*args, **kwargs)
        if late():
            answer = real(*args, **kwargs)
            if inspect.isgenerator(answer):
                list(answer)
        raise Injected(name)

    patch.setattr(where, name, call)


def lose_chunks(patch: pytest.MonkeyPatch, kept: Callable[[int], int]) -> None:
    """LMCache finds all chunks, and loads the first ``kept(all of them)``, as when one is cut."""
    real = LMCacheEngine.retrieve

    def retrieve(self: Any, tokens: list[int], mask: Any, **arguments: Any) -> torch.Tensor:
        chunk = self.config.chunk_size
        count = kept(len(tokens) // chunk) * chunk
        loaded = torch.zeros(len(tokens), dtype=torch.bool)
        if count:
            arguments["slot_mapping"] = arguments["slot_mapping"][:count]
            loaded[:count] = real(self, tokens[:count], mask[:count], **arguments)
        return loaded

    patch.setattr(LMCacheEngine, "retrieve", retrieve)


def lose_chunks_of_a_cache_server(patch: pytest.MonkeyPatch, kept: int) -> None:
    """The cache server finds all chunks of a prompt, and the first ``kept`` are still there."""
    real = MultiprocessWorkerCache.load

    def load(self: Any, load: Any) -> Any:
        source = load.source
        digests = source.digests[: max(kept - source.first, 0)]
        return real(self, replace(load, source=replace(source, digests=digests)))

    patch.setattr(MultiprocessWorkerCache, "load", load)
