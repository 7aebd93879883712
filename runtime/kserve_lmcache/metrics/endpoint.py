"""``/metrics`` of all processes of the server.

vLLM's engine and LMCache count in other processes. prometheus_client's multiprocess mode adds
the files up that every process keeps in ``PROMETHEUS_MULTIPROC_DIR``.
"""

from __future__ import annotations

from fastapi import Request, Response
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector


async def metrics(request: Request) -> Response:
    """The samples in the format that the scraper accepts."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"content-type": content_type})
