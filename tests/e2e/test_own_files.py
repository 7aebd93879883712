"""A live server's metrics stay the same while every other command runs beside it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.metrics import samples
from tests.support.server import MODEL, ROOT, engine_environment, running

OTHER_COMMANDS = (
    ["config"],
    ["config", "--engine", f"--model_id={MODEL}"],
    ["doctor"],
    ["doctor", "--engine"],
    ["bench", "report", "/nonexistent"],
    ["--version"],
    ["serve", f"--model_id={MODEL}", "--http_port=abc"],
)
# Counts of requests and tokens. Times and gauges of a live server change by themselves.
COUNTS = re.compile(r"vllm:(prompt|generation)_tokens_total|vllm:request_success_total|lmcache:num")


def counts(url: str) -> Mapping[str, float]:
    return {name: value for name, value in samples(url).items() if COUNTS.match(name)}


@pytest.mark.slow
def test_no_command_changes_the_metrics_of_a_live_server(logs: Path, tmp_path: Path) -> None:
    (tmp_path / "users.db").write_bytes(b"of somebody else")
    environ = engine_environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    with running(logs / "own-files.log", environ=environ) as server:
        server.chat("Hello!")
        before = counts(server.url)
        assert before["vllm:prompt_tokens_total"] > 0
        for command in OTHER_COMMANDS:
            subprocess.run(
                [str(ROOT / "entrypoint.sh"), *command], env=environ, capture_output=True
            )
            assert counts(server.url) == before, command
    assert [path.name for path in tmp_path.iterdir()] == ["users.db"]
