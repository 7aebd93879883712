"""A pooling model: the small model's hidden states as embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.metrics import samples
from tests.support.server import Server, engine_environment, long_prompt, running

# Of vectors of length 1: what the roundings of float32 make of some 150,000 additions.
TOLERANCE = 2**-24 * math.sqrt(150_000) * 10


@pytest.fixture(scope="module")
def server(logs: Path) -> Iterator[Server]:
    environ = engine_environment(LMCACHE_MAX_LOCAL_CPU_SIZE="0.5")
    # Without vLLM's own prefix cache, so that what is loaded comes from LMCache.
    exact = ("--no-enable-prefix-caching", "--dtype=float32")
    arguments = ("--runner=pooling", "--convert=embed", *exact)
    with running(logs / "embedding.log", *arguments, environ=environ) as server:
        yield server


def similarity(one: list[float], other: list[float]) -> float:
    """Of vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_embeds_by_the_openai_client(server: Server) -> None:
    texts = ["The cat sat on the mat.", "A cat sits on a mat.", "def main(): return 0"]
    answer = server.client().embeddings.create(model=server.name, input=texts)
    cat, cats, code = (item.embedding for item in answer.data)
    assert len(cat) == 576
    assert similarity(cat, cat) == pytest.approx(1, abs=1e-3)
    assert similarity(cat, cats) > similarity(cat, code)


def test_a_loaded_prefix_gives_the_same_embedding(server: Server) -> None:
    end = long_prompt("the end", words=60)
    text, other = (f"{long_prompt(begin)} {end}" for begin in ("embedded", "another"))
    metric = "vllm:external_prefix_cache_hits_total"
    vectors, loaded = [], []
    for each in (text, text, other):
        before = samples(server.url)[metric]
        answer = server.client().embeddings.create(model=server.name, input=each)
        loaded.append(samples(server.url)[metric] - before)
        vectors.append(answer.data[0].embedding)
    assert loaded[0] == loaded[2] == 0
    assert loaded[1] >= 1024
    assert math.dist(vectors[0], vectors[1]) < TOLERANCE
    # What was loaded matters: the same end behind something else is far from it.
    assert math.dist(vectors[0], vectors[2]) > 10 * TOLERANCE


def test_reranks(server: Server) -> None:
    body = {
        "model": server.name,
        "query": "The cat sat on the mat.",
        "documents": ["def main(): return 0", "A cat sits on a mat."],
    }
    response = httpx.post(f"{server.openai_url}/rerank", json=body, timeout=60)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["index"] for result in results] == [1, 0]
    assert results[0]["relevance_score"] > results[1]["relevance_score"]


def test_refuses_to_chat(server: Server) -> None:
    body = {"model": server.name, "messages": [{"role": "user", "content": "Hello!"}]}
    response = httpx.post(f"{server.openai_url}/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    assert "does not support Chat Completions" in response.json()["error"]["message"]
