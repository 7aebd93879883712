"""``/metrics`` of all processes of the server.

VLLM and LMCache count by prometheus_client, whose multiprocess mode adds up the files that every
process keeps in ``PROMETHEUS_MULTIPROC_DIR``. This package's metrics come from snapshots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import Response
from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from kserve_lmcache.metrics.totals import Totals, TotalsCollector


class MetricsEndpoint:
    """Answers a scrape.

    Args:
        totals: gives this package's metrics.
    """

    def __init__(self, totals: Callable[[], Totals]) -> None:
        self._totals = TotalsCollector(totals)
        self._lock = asyncio.Lock()

    async def answer(self) -> Response:
        """The scrape, which is made in a thread: streams of answers go on meanwhile.

        One is made at a time. Anybody may scrape, and each scrape reads files.
        """
        async with self._lock:
            return await asyncio.to_thread(self._scrape)

    def _scrape(self) -> Response:
        """All samples in Prometheus' text format, whichever format the scraper prefers.

        In the OpenMetrics format, prometheus_client 0.24 replaces the colons of vLLM's metric
        names by underscores, so that dashboards and alerts do not find them.
        """
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        registry.register(self._totals)
        headers = {"content-type": CONTENT_TYPE_PLAIN_0_0_4}
        return Response(generate_latest(registry), headers=headers)
