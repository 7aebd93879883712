"""A real Prometheus that scrapes one server, as the PodMonitor would have it do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.ports import free_port
from tests.support.processes import Process, is_healthy

# What the PodMonitor's operator adds to each sample.
LABELS = {
    "namespace": "chat",
    "pod": "chat-predictor-0",
    "serving_kserve_io_inferenceservice": "chat",
}


@dataclass
class Prometheus:
    """A running one."""

    port: int
    process: Process

    def get(self, path: str, **parameters: str) -> Any:
        """What its HTTP API answers."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, query: str) -> list[float]:
        """Of all series that a query finds now, without those that are not a number."""
        found = (
            float(each["value"][1]) for each in self.get("/api/v1/query", query=query)["result"]
        )
        return [value for value in found if not math.isnan(value)]

    def is_ready(self) -> bool:
        return is_healthy(f"http://127.0.0.1:{self.port}/-/ready")


@contextmanager
def prometheus(
    directory: Path, target: str, groups: Sequence[dict[str, Any]]
) -> Iterator[Prometheus]:
    """Scrape ``target`` (host and port) every second, with the rules of ``groups``."""
    (directory / "rules.yml").write_text(yaml.safe_dump({"groups": [*groups]}))
    scrape = {"job_name": "pods", "static_configs": [{"targets": [target], "labels": LABELS}]}
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [scrape],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration))
    port = free_port()
    process = Process(
        [
            "prometheus",
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        directory / "prometheus.log",
        {},
    )
    found = Prometheus(port, process)
    try:
        process.wait_until(found.is_ready, 30)
        yield found
    finally:
        process.stop()
