"""Two replicas with the guide's YAML and one real Redis."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from kserve_lmcache.config.settings import IN_PROCESS
from kserve_lmcache.tiers.redis.client import KEY_PREFIX
from tests.support.answers import answer_of
from tests.support.options import option
from tests.support.server import (
    MOST_LINES,
    Server,
    cached_tokens,
    engine_environment,
    long_prompt,
    running,
)
from tests.support.stores import Store

GUIDE_YAML = """\
local_cpu: true  # Enable local CPU RAM cache for fast access (Recommended)
chunk_size: 256  # Size of cache chunks (tune for your model)
max_local_cpu_size: 2.0  # Max size (GB) for local CPU cache
remote_url: "{url}"  # Redis as remote backend
remote_serde: "naive"  # Serialization method for remote cache.
"""


# A cached prefix changes the shape in which the rest of the prompt is computed, and with it the
# rounding: enough in bfloat16 to turn a tie between two tokens, and far too little in float32.
EXACT = "--dtype=float32"


def _truncate_one_chunk(store: Store, keys: set[bytes]) -> None:
    """Of the chunks under ``keys``, leave one with its last bytes missing."""
    client = store.client()
    chunk = sorted(keys)[1]
    value = client.get(chunk)
    assert isinstance(value, bytes)
    client.set(chunk, value[:-1000])


def _both_announced_themselves(store: Store, first: Server, second: Server) -> None:
    client = store.client()
    (key,) = client.keys("kserve-lmcache:replicas:*")
    told = {place.decode(): json.loads(text) for place, text in client.hgetall(key).items()}
    host = socket.gethostname()
    assert set(told) == {f"{host}:{first.port}", f"{host}:{second.port}"}
    chunks = (chunk.decode().removeprefix(KEY_PREFIX) for chunk in store.chunks())
    # The worker appends a digest of its layout to the namespace.
    prefixes = {chunk.partition("@")[0].rpartition("-")[0] for chunk in chunks}
    assert {record["namespace"] for record in told.values()} == prefixes
    for record in told.values():
        assert record["inputs"]["hash_seed"] == "0"
        assert record["inputs"]["chunk_size"] == 256
        assert record["inputs"]["dtype"] == "torch.float32"
    start = first.process.output().partition("Ready. Try: ")[0]
    assert len(start.splitlines()) <= MOST_LINES, start
    assert "Check replicas: ok, no other servers of this model" in start
    log = second.process.output()
    assert "Check replicas: ok, 1 other server of this model" in log
    assert f"all alike: {host}:{first.port} (" in log


def test_a_second_replica_takes_the_prefix_from_redis(
    logs: Path, tmp_path: Path, redis_store: Store, cut_model: Path, reference: Server
) -> None:
    file = tmp_path / "lmcache_config.yaml"
    file.write_text(GUIDE_YAML.format(url=redis_store.url))
    environ = engine_environment(LMCACHE_CONFIG_FILE=str(file), LMCACHE_USE_EXPERIMENTAL="True")
    model = (f"--model_id={cut_model}",)
    prompt, damaged = long_prompt("shared", words=960), long_prompt("damaged", words=960)

    with running(logs / "first.log", EXACT, environ=environ, model=model) as first:
        stored = first.chat(prompt, logprobs=True)
        assert stored.usage is not None
        assert stored.usage.prompt_tokens > 1024
        assert cached_tokens(stored) == 0
        first.process.wait_until(lambda: len(redis_store.chunks()) >= 4, seconds=10)
        before = redis_store.chunks()
        whole = first.chat(damaged, logprobs=True)
        first.process.wait_until(lambda: len(redis_store.chunks()) >= len(before) + 4, seconds=10)
        _truncate_one_chunk(redis_store, redis_store.chunks() - before)
        with running(logs / "second.log", EXACT, environ=environ, model=model) as second:
            loaded = second.chat(prompt, logprobs=True)
            recomputed = second.chat(damaged, logprobs=True)
            if option("--mode") == IN_PROCESS:  # a cache server finds it before the load
                assert "failed to load" in second.process.output()
            assert f"The remote tier {redis_store.url} answers" in second.process.output()
            assert "is corrupt and is deleted: the value has" in second.process.output()
            _both_announced_themselves(redis_store, first, second)
    computed = reference.chat(prompt, logprobs=True)
    assert cached_tokens(computed) == 0
    assert "Serving WITHOUT KV-cache offloading: --offload is off" in reference.process.output()

    assert cached_tokens(loaded) >= 1024
    assert answer_of(loaded).is_like(answer_of(stored))
    assert answer_of(recomputed).is_like(answer_of(whole))
    assert answer_of(loaded).is_like(answer_of(computed))
