"""Whatever fits the OpenAPI document, and much that does not: never a 500, never a hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.clients.conftest import KEY, Clients
from tests.support.options import option

EXAMPLES = option("--api-examples")  # of each operation
PATIENCE = 180  # seconds for one answer, which may fill the model's whole context
SECONDS = 150 * (EXAMPLES + 1)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_no_request_is_answered_with_500_or_not_at_all(clients: Clients, tmp_path: Path) -> None:
    url = f"{clients.server.url}/openai"
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        *("run", f"{url}/openapi.json", "--url", url),
        *("--header", f"Authorization: Bearer {KEY}"),
        # SageMaker's document of the first is wrong; vLLM's second answers 501 to streams.
        *("--exclude-path-regex", "^/adapters/|/chat/completions/derender$"),
        *("--checks", "not_a_server_error", "--phases", "examples,fuzzing", "--mode", "all"),
        *("--max-examples", str(EXAMPLES), "--seed", "8", "--workers", "4"),
        *("--request-timeout", str(PATIENCE), "--generation-database", "none", "--no-color"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=SECONDS)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert clients.http.get("/v2/health/live").status_code == 200
    body = {"model": clients.name, "prompt": "Hi", "max_tokens": 1}
    assert clients.http.post("/openai/v1/completions", json=body).status_code == 200
