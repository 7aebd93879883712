"""One server with the defaults: no YAML, no variables, no connector JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.metrics import samples
from tests.support.processes import last_line, wait_for_end
from tests.support.server import Server, cached_tokens, engine_environment, long_prompt, running

# Of vLLM's own cache, room for little more than the longest prompt (46 KB a token).
SMALL_CACHE = "--kv-cache-memory-bytes=220M"
CHUNK = 256


@pytest.fixture(scope="module")
def termination_log(logs: Path) -> Path:
    """The file that Kubernetes shows as the reason of a container's end."""
    path = logs / "termination-log"
    path.touch()
    return path


@pytest.fixture(scope="module")
def server(logs: Path, termination_log: Path) -> Iterator[Server]:
    environ = engine_environment(
        LMCACHE_MAX_LOCAL_CPU_SIZE="1.0", TERMINATION_LOG=str(termination_log)
    )
    with running(logs / "server.log", SMALL_CACHE, environ=environ) as server:
        yield server


def test_says_that_offloading_is_on_and_why_that_size(server: Server) -> None:
    log = server.process.output()
    assert "KV-cache offloading is on: local CPU tier of 1 GiB (LMCACHE_MAX_LOCAL_CPU_SIZE)" in log
    assert "Computing on CPU cores" in log or "Computing by " in log


def test_a_prefix_that_vllm_evicted_comes_from_lmcache(server: Server) -> None:
    prompt = long_prompt("evicted")
    cold = server.chat(prompt, logprobs=True)
    assert cold.usage is not None
    assert cold.usage.prompt_tokens > 1000
    assert cached_tokens(cold) < CHUNK
    from_vllm = server.chat(prompt, logprobs=True)
    for seed in ("filler", "other", "third"):
        server.chat(long_prompt(seed, words=1200))
    before = samples(server.url)["vllm:external_prefix_cache_hits_total"]
    from_lmcache = server.chat(prompt, logprobs=True)
    loaded = samples(server.url)["vllm:external_prefix_cache_hits_total"] - before
    assert loaded >= cold.usage.prompt_tokens // CHUNK * CHUNK - CHUNK
    assert cached_tokens(from_lmcache) == cached_tokens(from_vllm) >= loaded
    # To the last bit, since both compute the rest of the prompt in the same shape. The cold
    # answer was computed in another one, which rounds differently.
    assert from_lmcache.choices[0].logprobs == from_vllm.choices[0].logprobs
    assert from_lmcache.choices[0].message.content == from_vllm.choices[0].message.content


def test_streams_the_same_text_with_usage(server: Server) -> None:
    whole = server.chat("Name three colours.")
    stream = server.client().chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": "Name three colours."}],
        temperature=0,
        max_tokens=24,
        seed=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert len(chunks) > 3
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None


def test_completions(server: Server) -> None:
    answer = server.client().completions.create(
        model=server.name, prompt="The capital of France is", max_tokens=8, temperature=0
    )
    assert answer.choices[0].text.strip()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embeddings", {"input": "text"}),
        ("rerank", {"query": "a", "documents": ["b", "c"]}),
    ],
)
def test_a_generative_model_refuses_encoder_routes(
    server: Server, path: str, body: dict[str, object]
) -> None:
    response = httpx.post(f"{server.openai_url}/{path}", json={"model": server.name, **body})
    assert response.status_code == 400
    assert "does not support" in response.json()["error"]["message"]


def test_lists_the_model_and_its_health(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == [server.name]
    assert httpx.get(f"{server.url}/v1/models").json() == {"models": [server.name]}
    assert httpx.get(f"{server.url}/v1/models/{server.name}").json()["ready"] is True
    for path in ("live", "ready"):
        assert httpx.get(f"{server.url}/v2/health/{path}").status_code == 200
    assert httpx.get(f"{server.url}/v2/models/{server.name}/ready").json()["ready"] is True
    assert httpx.get(f"{server.url}/v2/models/{server.name}").json()["name"] == server.name


def test_a_prompt_that_is_too_long_is_refused_and_serving_goes_on(server: Server) -> None:
    prompt = long_prompt("long", words=3000)
    body = {"model": server.name, "messages": [{"role": "user", "content": prompt}]}
    response = httpx.post(f"{server.openai_url}/chat/completions", json=body)
    assert response.status_code == 400
    assert "4096" in response.json()["error"]["message"]
    assert prompt not in response.text
    assert server.chat("Hello!").choices[0].message.content


def test_an_unknown_model_is_not_found(server: Server) -> None:
    body = {"model": "nobody", "messages": [{"role": "user", "content": "Hi"}]}
    response = httpx.post(f"{server.openai_url}/chat/completions", json=body)
    assert response.status_code == 404


def test_metrics_hold_every_process(server: Server) -> None:
    found = samples(server.url)
    assert found["vllm:prompt_tokens_total"] > 0
    assert found["lmcache:num_stored_tokens_total"] > 0
    assert found["process_resident_memory_bytes"] > 0


def test_a_dead_engine_ends_the_server(server: Server, termination_log: Path) -> None:
    family = server.process.family()
    engine = next(process for process in family if "EngineCore" in process.name())
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    engine.kill()
    server.process.wait_until(
        lambda: httpx.get(f"{server.url}/v2/health/live").status_code == 503, seconds=10
    )
    assert not server.is_ready()
    # And then it ends by itself, with nothing left behind.
    assert server.process.wait(seconds=15) == 1
    assert wait_for_end(family, seconds=5) == []
    line = last_line(server.process)
    assert line.startswith("kserve-lmcache: error: vLLM's engine has died: EngineCore")
    assert "was killed by SIGKILL" in line
    assert line.endswith("(exit code 1)")
    assert termination_log.read_text() == line
