"""A collector of OpenTelemetry's protocol, which keeps what it is sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Its spans."""

    port: int = 0
    spans: list[Any] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:
        """As the service is defined."""
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def of_trace(self, trace_id: str) -> dict[str, dict[str, Any]]:
        """Attributes of a trace's spans by their names, and ``parent`` and ``seconds`` of each."""
        found: dict[str, dict[str, Any]] = {}
        for span in [*self.spans]:
            if span.trace_id.hex() == trace_id:
                assert span.name not in found, f"{span.name} is there twice"
                found[span.name] = {each.key: each.value.int_value for each in span.attributes}
                found[span.name]["parent"] = span.parent_span_id.hex()
                nanoseconds = span.end_time_unix_nano - span.start_time_unix_nano
                found[span.name]["seconds"] = nanoseconds / 1e9
        return found

    def wait_for(self, trace_id: str, names: set[str], seconds: float = 20) -> dict[str, Any]:
        """The trace once all of ``names`` are there; exporters send every few seconds."""
        end = time.monotonic() + seconds
        while not names <= self.of_trace(trace_id).keys():
            assert time.monotonic() < end, f"only {[*self.of_trace(trace_id)]} came"
            time.sleep(0.2)
        return self.of_trace(trace_id)


@contextmanager
def collector() -> Iterator[Collector]:
    """Started on a free port of this machine."""
    found, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    found.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield found
    finally:
        server.stop(None)
