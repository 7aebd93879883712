"""The servers that are compared: the same engine, arguments and threads, and what is around it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import Process, is_healthy
from tests.support.server import MODEL, ROOT, START_SECONDS, engine_environment
from tests.support.stores import Store

ENGINE = ("--max-model-len=8192", "--kv-cache-memory-bytes=800M", "--enforce-eager")
# Left to itself vLLM computes with fewer threads than there are cores, and LMCache changes that.
# One thread: while vLLM's worker computes, its scheduler spins, and that needs a core as well.
THREADS = {"VLLM_CPU_OMP_THREADS_BIND": "0"}
OURS, VLLM = "/v2/health/ready", "/health"


@dataclass(frozen=True)
class Server:
    """One server process.

    Attributes:
        url: where it listens.
        health: the path that answers 200 when it is ready.
        process: its own.
        beside: what it needs besides.
    """

    url: str
    health: str
    process: Process
    beside: tuple[Process, ...] = ()

    def wait(self) -> None:
        self.process.wait_until(lambda: is_healthy(self.url + self.health), START_SECONDS)

    def stop(self) -> None:
        for process in (self.process, *self.beside):
            process.stop()


Start = Callable[[Path, Store], Server]


def ours(directory: Path, store: Store) -> Server:
    """This package with the Redis."""
    return _ours(directory / "ours", **_lmcache(store))


def off(directory: Path, _store: Store) -> Server:
    """This package with offloading off."""
    return _ours(directory / "off", "--offload=off")


def vllm(directory: Path, _store: Store) -> Server:
    """vLLM's own server."""
    return _vllm(directory / "vllm")


def stock(directory: Path, store: Store) -> Server:
    """vLLM's own server with LMCache's in-process connector and the Redis.

    On a CPU LMCache has no copy path: it says so, once it is imported, and caches nothing.
    """
    connector = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    return _vllm(directory / "stock", _transfer(connector), **_lmcache(store))


def mp(directory: Path, store: Store) -> Server:
    """vLLM's own server with a cache server of LMCache's beside it (MP mode) and the Redis.

    Where Mooncake is installed, as it is for the tests, LMCache's server wants Debian's
    ``libibverbs1``.
    """
    port, http_port, metrics_port = free_port(), free_port(), free_port()
    adapter = {"type": "resp", "host": store.host, "port": store.port}
    command = [str(Path(sys.executable).with_name("lmcache")), "server", f"--port={port}"]
    command += ["--host=127.0.0.1", "--http-host=127.0.0.1", f"--http-port={http_port}"]
    command += ["--l1-size-gb=1", f"--prometheus-port={metrics_port}"]
    command += ["--supported-transfer-mode=engine_driven"]  # the one that a CPU has
    command += ["--l2-adapter", json.dumps(adapter), "--eviction-policy=LRU"]
    cache = Process(command, directory / f"lmcache-{port}.log", engine_environment())
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
    server = _vllm(directory / "mp", _transfer(connector))
    return replace(server, beside=(cache,))


def _lmcache(store: Store) -> dict[str, str]:
    return {"LMCACHE_REMOTE_URL": store.url, "LMCACHE_MAX_LOCAL_CPU_SIZE": "1"}


def _transfer(connector: dict[str, object]) -> str:
    return f"--kv-transfer-config={json.dumps(connector)}"


def _ours(log: Path, *arguments: str, **environ: str) -> Server:
    command = [str(ROOT / "entrypoint.sh"), f"--model_id={MODEL}", "--model_name=small"]
    return _start(log, [*command, *arguments], "--http_port", OURS, environ)


def _vllm(log: Path, *arguments: str, **environ: str) -> Server:
    # What ``vllm serve`` runs; that command itself wants the distribution to be called vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={MODEL}"]
    command += ["--served-model-name=small", "--host=127.0.0.1", "--enable-prompt-tokens-details"]
    return _start(log, [*command, *arguments], "--port", VLLM, environ)


def _start(
    log: Path, command: Sequence[str], port_flag: str, health: str, environ: dict[str, str]
) -> Server:
    port = free_port()
    process = Process(
        [*command, *ENGINE, f"{port_flag}={port}"],
        log.with_name(f"{log.name}-{port}.log"),
        engine_environment(**THREADS, **environ),
    )
    return Server(f"http://127.0.0.1:{port}", health, process)


@contextmanager
def running(
    directory: Path, store: Store, *starts: tuple[Start, int]
) -> Iterator[dict[str, list[str]]]:
    """Servers that are ready, one after the other.

    Args:
        directory: for their logs.
        store: the Redis that they share.
        starts: each contender, and how many replicas of it.

    Yields:
        The URLs of the replicas, by the contender's name.
    """
    servers: dict[str, list[Server]] = {}
    try:
        for start, replicas in starts:
            for _ in range(replicas):
                server = start(directory, store)
                servers.setdefault(start.__name__, []).append(server)
                server.wait()
        yield {name: [each.url for each in started] for name, started in servers.items()}
    finally:
        for started in servers.values():
            for server in started:
                server.stop()
