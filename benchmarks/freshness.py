"""How soon ``/metrics`` and ``/offload`` show what happened, and how idle an idle server is.

    python -m benchmarks.freshness [--model DIR] [--redis-server FILE] [--rounds N] [--idle SECONDS]

Starts a Redis and the server of this checkout beside it, and prints a Markdown table:

- seconds from an answer until its prompt's tokens are counted in ``/metrics`` and in ``/offload``,
  and until its chunks are counted as written to the Redis in ``/metrics``;
- seconds from the end and from the start of the Redis until ``/offload`` shows it, while no
  request comes;
- CPU seconds of each process of the server while no request comes.

Run with the server's own Python.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
_START_SECONDS = 300.0
_PAUSE = 0.01  # seconds between two looks
_OURS = "kserve_lmcache_"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / ".models" / "SmolLM2-135M-Instruct"))
    parser.add_argument("--redis-server", default=shutil.which("redis-server"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--idle", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        redis = Redis(args.redis_server, Path(directory))
        redis.start()
        try:
            with server(args.model, redis.port, Path(directory) / "server.log") as (url, process):
                rows = measure(url, process, redis, args.rounds, args.idle)
        finally:
            redis.stop()
    print("| what | median | worst |\n|---|---|---|")
    for name, (middle, worst) in rows.items():
        print(f"| {name} | {middle:.2f} | {worst:.2f} |")


class Redis:
    """A Redis that ends and starts again on the same port.

    Args:
        binary: redis-server.
        directory: its working directory.
    """

    def __init__(self, binary: str, directory: Path) -> None:
        self.port = _free_port()
        self._command = [binary, "--port", str(self.port), "--save", "", "--dir", str(directory)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until the port answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        _wait(lambda: _answers(self.port), 10)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def server(model: str, redis_port: int, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server that is ready: its address and its process."""
    port = _free_port()
    command = [
        str(ROOT / "entrypoint.sh"),
        f"--model_id={model}",
        "--model_name=model",
        f"--http_port={port}",
        "--max-model-len=4096",
        "--kv-cache-memory-bytes=400M",
        "--enforce-eager",
    ]
    environ = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT / "runtime"),
        "LMCACHE_REMOTE_URL": f"redis://127.0.0.1:{redis_port}",
        "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.5",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environ, stdout=output, stderr=output, process_group=0
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _ready(url, process, log), _START_SECONDS)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def measure(
    url: str, process: psutil.Process, redis: Redis, rounds: int, idle: float
) -> dict[str, tuple[float, float]]:
    """Median and worst of each measured quantity, by its name."""
    found: dict[str, list[float]] = {}
    with httpx.Client(base_url=url, timeout=120) as client:
        for number in range(-1, rounds):
            counted = _request(client, number)
            if number >= 0:  # the first one only warms the engine up
                for name, seconds in counted.items():
                    found.setdefault(name, []).append(seconds)
        for _ in range(max(1, rounds // 3)):
            _wait(lambda: _state(client) == "on", 60)
            time.sleep(15)  # an idle server asks its store for a sign of life
            redis.stop()
            lost = _seconds_until(lambda: _state(client) == "degraded")
            found.setdefault("Redis ends: `/offload` (s)", []).append(lost)
            redis.start()
            back = _seconds_until(lambda: _state(client) == "on")
            found.setdefault("Redis starts: `/offload` (s)", []).append(back)
        time.sleep(10)
        for name, seconds in _cpu_seconds(process, idle).items():
            found[f"CPU, idle for {idle:g} s: {name} (s)"] = [seconds]
    return {name: (median(each), max(each)) for name, each in found.items()}


def _request(client: httpx.Client, number: int) -> dict[str, float]:
    """Seconds from the answer to a new prompt until each place has counted it."""
    tokens, written = _tokens_in_metrics(client), _written(client)
    body = {
        "model": "model",
        "prompt": " ".join(f"{number}{word % 37} item {word}." for word in range(200)),
        "max_tokens": 4,
    }
    answer = client.post("/openai/v1/completions", json=body).raise_for_status().json()
    wanted = tokens + answer["usage"]["prompt_tokens"]
    return {
        "answer: tokens in `/metrics` (s)": _seconds_until(
            lambda: _tokens_in_metrics(client) >= wanted
        ),
        "answer: writes in `/metrics` (s)": _seconds_until(lambda: _written(client) > written),
        "answer: tokens in `/offload` (s)": _seconds_until(
            lambda: _tokens_in_status(client) >= wanted
        ),
    }


def _tokens_in_metrics(client: httpx.Client) -> float:
    return _total(client, "prompt_tokens_total")


def _written(client: httpx.Client) -> float:
    return _total(client, "chunks_written_total")


def _total(client: httpx.Client, name: str) -> float:
    text = client.get("/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == _OURS + name
    )


def _tokens_in_status(client: httpx.Client) -> float:
    return sum(client.get("/offload").json()["prompt_tokens"].values())


def _state(client: httpx.Client) -> str:
    return str(client.get("/offload").json()["state"])


def _cpu_seconds(process: psutil.Process, idle: float) -> dict[str, float]:
    """CPU seconds of each process of a server that is left alone for ``idle`` seconds."""
    family = [process, *process.children(recursive=True)]
    before = [each.cpu_times() for each in family]
    time.sleep(idle)
    seconds: dict[str, float] = {}
    for each, begin in zip(family, before, strict=True):
        now = each.cpu_times()
        name = each.name()
        seconds[name] = seconds.get(name, 0.0) + (now.user + now.system - begin.user - begin.system)
    return seconds


def _seconds_until(happened: Callable[[], bool]) -> float:
    began = time.monotonic()
    _wait(happened, 120)
    return time.monotonic() - began


def _wait(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened in {seconds} s")
        time.sleep(_PAUSE)


def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the server ended:\n{log.read_text(errors='replace')[-3000:]}")
    try:
        return httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    """A port below those that outgoing connections get, so that it stays free for a restart."""
    while _answers(port := random.randrange(10_000, 20_000)):
        pass
    return port


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
