"""``/metrics`` of all processes of the server.

vLLM's engine and LMCache count in other processes. prometheus_client's multiprocess mode adds
the files up that every process keeps in ``PROMETHEUS_MULTIPROC_DIR``.
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
    """All samples, in Prometheus' text format whatever the scraper prefers.

    In OpenMetrics prometheus_client 0.24 turns the colons of vLLM's names into underscores, and
    no dashboard or alert finds them under the names that vLLM documents.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})
