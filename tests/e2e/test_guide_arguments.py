"""The args of the guide's InferenceService, verbatim but for the model, which is on no hub here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_for_end
from tests.support.server import (
    MODEL,
    Server,
    cached_tokens,
    engine_environment,
    long_prompt,
    running,
)

GUIDE_ARGS = (
    "--max-model-len=10000",
    '--kv-transfer-config=\'{"kv_connector":"LMCacheConnectorV1", "kv_role":"kv_both"}\'',
    "--enable-chunked-prefill",
)


@pytest.fixture(scope="module")
def server(logs: Path) -> Iterator[Server]:
    environ = engine_environment(
        LMCACHE_MAX_LOCAL_CPU_SIZE="1.0",
        # The guide's length is more than the 8192 that the small model was trained for.
        VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
        # The tests look for records that the libraries leave out by default.
        VLLM_LOGGING_LEVEL="INFO",
        LMCACHE_LOG_LEVEL="INFO",
    )
    with running(
        logs / "guide.log",
        *GUIDE_ARGS,
        "--kv-cache-memory-bytes=500M",  # 46 KB a token
        environ=environ,
        name="llama3",
        model=(f"--model_id={MODEL}",),
    ) as server:
        yield server


def test_offloads_by_our_connector(server: Server) -> None:
    prompt = long_prompt("guide")
    first = server.chat(prompt)
    again = server.chat(prompt)
    assert first.model == "llama3"
    assert cached_tokens(again) >= 1024
    assert "Creating v1 connector with name: KServeLMCacheConnector" in server.process.output()


def test_sigterm_lets_a_streamed_answer_finish(server: Server) -> None:
    family = server.process.family()
    assert len(family) > 2
    stream = server.client().chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "Tell me a very long story about the sea."}],
        temperature=0,
        max_tokens=60,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = [next(stream)]
    server.process.signal(signal.SIGTERM)
    chunks.extend(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    tokens = sum(1 for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
    assert tokens > 30
    assert server.process.wait(seconds=30) == 0
    assert wait_for_end(family, seconds=10) == []
    # The worker flushed its tiers and ended by itself.
    output = server.process.output()
    assert "Assertion failed" not in output
    assert "LMCacheEngine instance vllm-instance destroyed" in output
