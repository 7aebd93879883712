"""``/metrics`` of all processes of the server.

vLLM's engine and LMCache run in other processes. In prometheus_client's multiprocess mode every
process keeps its counters in files in ``PROMETHEUS_MULTIPROC_DIR``; this endpoint adds them up.
"""

from __future__ import annotations

from fastapi import Response
from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector


async def metrics() -> Response:
    """All samples in Prometheus' text format, whichever format the scraper prefers.

    In the OpenMetrics format, prometheus_client 0.24 replaces the colons of vLLM's metric names by
    underscores, so that dashboards and alerts do not find them.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
