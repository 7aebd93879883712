"""What of prompts came from where, as a worker sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kserve_lmcache.metrics.table import metric

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kserve_lmcache.tiers.guard.load_cost import PrefillRate
    from kserve_lmcache.tiers.guard.tier import Tier

LOCAL = "local_cpu"


class TokenMetrics:
    """Counts what the tiers of ours do not count themselves.

    Args:
        tiers: those behind the local one, by the label that they have in metrics.
        chunk_tokens: tokens of one chunk.
        is_first: of the engine's workers, who all load the same tokens: it counts them.
        prefill: how fast the engine computes.
    """

    def __init__(
        self, tiers: Mapping[str, Tier], chunk_tokens: int, is_first: bool, prefill: PrefillRate
    ) -> None:
        self._tiers = tiers
        self._chunk_tokens = chunk_tokens
        self._is_first = is_first
        self._prefill = prefill
        if is_first:
            metric("saved_prefill_seconds_total")  # is 0 until it is known how fast it computes

    def looked_up(self, chunks: int, local: int) -> None:
        """A prompt of so many chunks was looked up; the local tier has the first ``local``."""
        metric("lookups_total", tier=LOCAL).inc()
        metric("lookup_hits_total", tier=LOCAL).inc(local)
        metric("lookup_misses_total", tier=LOCAL).inc(chunks - local)

    def read(self) -> dict[str, int]:
        """Chunks that each tier has read up to now."""
        return {name: tier.counters["chunks_read"] for name, tier in self._tiers.items()}

    def loaded(self, tokens: int, seconds: float, before: Mapping[str, int]) -> dict[str, int]:
        """A prompt was loaded.

        Args:
            tokens: that came.
            seconds: that it took.
            before: what :meth:`read` was before it.

        Returns:
            The tokens by the tier that they came from.
        """
        sources = {
            name: (chunks - before[name]) * self._chunk_tokens
            for name, chunks in self.read().items()
        }
        sources[LOCAL] = max(0, tokens - sum(sources.values()))
        if sources[LOCAL] == tokens > 0:
            metric("loads_total", tier=LOCAL).inc()
            metric("load_seconds", tier=LOCAL).observe(seconds)
        if self._is_first:
            for name, count in sources.items():
                metric("prompt_tokens_total", source=name).inc(count)
            if self._prefill.tokens_per_second is not None:
                metric("saved_prefill_seconds_total").inc(tokens / self._prefill.tokens_per_second)
        return sources

    def holds(self, used: int, capacity: int) -> None:
        """The local tier has so many bytes in use, of ``capacity``."""
        metric("local_cpu_used_bytes").set(used)
        metric("local_cpu_capacity_bytes").set(capacity)
