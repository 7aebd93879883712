"""Token metrics: how many tokens of prompts came from which tier, as a worker counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kserve_lmcache.metrics.table import metric

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kserve_lmcache.tiers.guard.load_cost import PrefillRate

LOCAL = "local_cpu"


class TokenMetrics:
    """Counts what our tiers do not count themselves.

    Args:
        tiers: labels in metrics of the tiers behind the local CPU tier.
        chunk_tokens: tokens of one chunk.
        is_first: whether this is the engine's first worker. All workers load the same tokens, and
            only the first worker counts them.
        prefill: the speed at which the engine computes.
    """

    def __init__(
        self, tiers: Collection[str], chunk_tokens: int, is_first: bool, prefill: PrefillRate
    ) -> None:
        self._tiers = tiers
        self._chunk_tokens = chunk_tokens
        self._is_first = is_first
        self._prefill = prefill
        if is_first:
            metric("saved_prefill_seconds_total")  # 0 until the speed is known

    def count_load(self, tokens: int, seconds: float, read: Mapping[str, int]) -> dict[str, int]:
        """Count the load of a prompt.

        Args:
            tokens: the number of tokens that were loaded.
            seconds: the duration of the load.
            read: the number of chunks that each tier read for it.

        Returns:
            The number of tokens by tier.
        """
        sources = {name: read.get(name, 0) * self._chunk_tokens for name in self._tiers}
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


def count_lookup(chunks: int, local: int) -> None:
    """Count a lookup of ``chunks`` chunks. The local tier has the first ``local`` of them."""
    metric("lookups_total", tier=LOCAL).inc()
    metric("lookup_hits_total", tier=LOCAL).inc(local)
    metric("lookup_misses_total", tier=LOCAL).inc(chunks - local)
