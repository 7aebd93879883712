"""Engines as the server makes them, without the server: what one prompt more or less shows."""

from __future__ import annotations

from pathlib import Path

from tests.support import engines
from tests.support.architectures import ARCHITECTURES, random_prompt
from tests.support.engines import Job, Round

BLOCK, CHUNK, LENGTH = 32, 64, 150
VARIABLES = {"LMCACHE_CHUNK_SIZE": str(CHUNK), "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.1"}


def llama(directory: Path) -> str:
    return str(ARCHITECTURES[0].build(directory / "model"))


def test_preempted_requests_come_back_when_little_was_found(tmp_path: Path) -> None:
    """With ``min_retrieve_tokens``, what was found may be too little to be loaded."""
    together = [random_prompt(f"together {number}", LENGTH) for number in range(4)]
    model = llama(tmp_path)
    kv_bytes = 2 * 3 * 2 * 32 * 4  # of one token: K and V, layers, heads, head size, float32
    flags = ("--max-model-len=256", "--max-num-batched-tokens=256", f"--block-size={BLOCK}")
    rounds = [Round(together, generate=60)] * 2
    plain, preempted = engines.run(
        [
            Job(model, (*flags, "--offload=off"), {}, rounds),
            Job(
                model,
                (*flags, f"--kv-cache-memory-bytes={22 * BLOCK * kv_bytes}"),
                {**VARIABLES, "LMCACHE_MIN_RETRIEVE_TOKENS": "160"},
                rounds,
            ),
        ],
        tmp_path,
    )
    assert not preempted.error, preempted.error
    assert sum(counters["vllm:num_preemptions"] for counters in preempted.counters) > 0
    for with_, without in zip(preempted.rounds, plain.rounds, strict=True):
        assert [answer.tokens for answer in with_] == [answer.tokens for answer in without]
