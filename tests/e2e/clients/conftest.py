"""One server for all client suites: a small model with adapters, a key and small limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from kserve_lmcache.cli.arguments import build_parser
from tests.support import models
from tests.support.server import START_SECONDS, Server, engine_environment, start

KEY = "a-key-of-the-tests"
TENANT = "X-Tenant-Id"
BODY_LIMIT = 2 * 2**20
LENGTH = 1024  # tokens; what nobody limits ends after so many


@dataclass
class Clients:
    """The server and clients of it."""

    server: Server
    openai: openai.OpenAI
    http: httpx.Client
    adapter: Path
    """The directory of an adapter that is not loaded."""
    while_starting: dict[str, int]
    """What the probes' routes answered before the engine was up."""

    @property
    def name(self) -> str:
        return self.server.name


@pytest.fixture(scope="package")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    directory = tmp_path_factory.mktemp("clients")
    model = models.first_layers(directory / "model", 3)
    static = models.adapter(directory / "static", 1, source=model)
    dynamic = models.adapter(directory / "dynamic", 2, source=model)
    environ = engine_environment(
        LMCACHE_MAX_LOCAL_CPU_SIZE="0.5",
        VLLM_ENABLE_RESPONSES_API_STORE="1",
        # A grammar that allows no white space: a model that knows nothing would never end it.
        VLLM_ENFORCE_STRICT_TOOL_CALLING="0",
        VLLM_API_KEY="the flag's key wins",
    )
    arguments = (
        f"--api-key={KEY}",
        f"--tenant-header={TENANT}",
        "--max-body-size=2Mi",
        f"--max-model-len={LENGTH}",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
        '--structured-outputs-config={"backend": "xgrammar", "disable_any_whitespace": true}',
        "--enable-lora",
        "--max-loras=2",
        "--max-lora-rank=8",
        f"--lora-modules=static={static}",
        "--enable-routes=lora",
        # Without the flag, the versions of vLLM that have it answer 403 on the routes of tokens.
        *{"--enable-scale-out"}.intersection(build_parser()._option_string_actions),
    )
    options = {"environ": environ, "model": (f"--model_id={model}",)}
    headers = {"Authorization": f"Bearer {KEY}"}
    server = start(directory / "server.log", *arguments, **options)
    try:
        server.process.wait_until(lambda: _status(server, "live") == 200, START_SECONDS)
        while_starting = {name: _status(server, name) for name in ("live", "ready")}
        server.process.wait_until(server.is_ready, START_SECONDS)
        with (
            httpx.Client(base_url=server.url, headers=headers, timeout=60) as http,
            openai.OpenAI(
                base_url=server.openai_url, api_key=KEY, timeout=60, max_retries=0
            ) as client,
        ):
            yield Clients(server, client, http, dynamic, while_starting)
    finally:
        server.process.stop()


def _status(server: Server, name: str) -> int:
    try:
        return httpx.get(f"{server.url}/v2/health/{name}").status_code
    except httpx.TransportError:
        return 0
