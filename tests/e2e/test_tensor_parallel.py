"""Three workers of one engine: SmolLM2 has three KV heads, one for each."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import engines
from tests.support.architectures import random_prompt
from tests.support.engines import Job, Round
from tests.support.metrics import samples
from tests.support.models import first_layers
from tests.support.server import cached_tokens, engine_environment, long_prompt, running
from tests.support.stores import Store
from tests.support.waiting import until

pytestmark = pytest.mark.slow

WORKERS, BLOCK, CHUNK, CHUNKS = 3, 32, 64, 4
FLAGS = (
    f"--tensor-parallel-size={WORKERS}",
    "--max-model-len=512",
    f"--block-size={BLOCK}",
    "--kv-cache-memory-bytes=64M",
)


VARIABLES = {
    "LMCACHE_CHUNK_SIZE": str(CHUNK),
    "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.1",
    "LMCACHE_REMOTE_LOOKUP_TIMEOUT": "5",  # three workers on two cores
    "LMCACHE_REMOTE_LOAD_TIMEOUT": "20",
    # By itself vLLM wants a NUMA node for each worker.
    "VLLM_CPU_OMP_THREADS_BIND": "0|1|0",
}


def test_each_worker_stores_and_loads_its_own_part(tmp_path: Path, redis_store: Store) -> None:
    variables = {**VARIABLES, "LMCACHE_REMOTE_URL": redis_store.url}
    prompt = random_prompt("parallel", CHUNKS * CHUNK + 10)
    # Few layers: the same engine and cache, sooner done.
    model = str(first_layers(tmp_path / "model", 2))
    job = Job(model, FLAGS, variables, [Round([prompt], generate=16)])
    computed, loaded = engines.run([job, job], tmp_path)
    for outcome in (computed, loaded):
        assert not outcome.error, outcome.error
    (first,), (second,) = computed.rounds[0], loaded.rounds[0]
    assert (first.cached, second.cached) == (0, CHUNKS * CHUNK)
    assert second.tokens == first.tokens
    keys = [re.search(r"@(\d+)@(\d+)@", key.decode()) for key in redis_store.chunks()]
    ranks = [(match[1], match[2]) for match in keys if match]
    assert sorted(ranks) == sorted([(str(WORKERS), str(rank)) for rank in range(WORKERS)] * CHUNKS)


def test_metrics_are_of_all_workers_and_count_each_token_once(
    tmp_path: Path, redis_store: Store
) -> None:
    environ = engine_environment(**VARIABLES, LMCACHE_REMOTE_URL=redis_store.url)
    model = (f"--model_id={first_layers(tmp_path / 'model', 2)}",)
    flags = (*FLAGS, "--no-enable-prefix-caching")
    with running(tmp_path / "log", *flags, environ=environ, model=model) as server:
        prompt = long_prompt("parallel", words=150)
        answers = [server.chat(prompt, max_tokens=2) for _ in range(2)]
        cached = cached_tokens(answers[1])
        assert cached >= CHUNKS * CHUNK
        asked = sum(answer.usage.prompt_tokens for answer in answers if answer.usage)
        chunks = redis_store.chunks()
        assert len(chunks) == WORKERS * (cached // CHUNK)
        with closing(redis_store.client()) as client:
            stored = sum(client.strlen(key) for key in chunks)
        until(lambda: samples(server.url)["kserve_lmcache_prompt_tokens_total"] >= asked)
        found = samples(server.url)
        assert found["kserve_lmcache_prompt_tokens_total"] == asked
        assert found["vllm:prompt_tokens_total"] == asked
        assert found["kserve_lmcache_written_bytes_total"] == stored
