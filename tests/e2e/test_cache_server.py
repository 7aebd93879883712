"""A cache server that two servers share, and that outlives them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kserve_lmcache.cache_server.announcement import announced
from tests.support.answers import answer_of
from tests.support.metrics import samples
from tests.support.processes import Process, wait_for_end
from tests.support.server import (
    Server,
    cached_tokens,
    engine_environment,
    long_prompt,
    running,
)

EXACT = "--dtype=float32"
SIZE_GIB = 0.5


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Of a cache server that runs."""
    directory = tmp_path / "node"
    command = [sys.executable, "-m", "kserve_lmcache", "cache-server", f"--directory={directory}"]
    process = Process(
        [*command, "--lmcache", f"max_local_cpu_size={SIZE_GIB}"],
        tmp_path / "cache-server.log",
        engine_environment(),
    )
    try:
        process.wait_until(lambda: announced(directory) is not None, 60)
        yield directory
    finally:
        process.stop()


def environment(directory: Path) -> dict[str, str]:
    return engine_environment(
        LMCACHE_MODE="multiprocess", KSERVE_LMCACHE_CACHE_SERVER_DIRECTORY=str(directory)
    )


def test_two_servers_share_it_and_a_third_finds_it(
    directory: Path, cut_model: Path, reference: Server, logs: Path
) -> None:
    prompt = long_prompt("shared", words=500)
    right = answer_of(reference.chat(prompt, logprobs=True))
    options = {"environ": environment(directory), "model": (f"--model_id={cut_model}",)}
    with running(logs / "first.log", EXACT, **options) as first:
        assert cached_tokens(first.chat(prompt)) == 0
        first.process.wait_until(lambda: stored(first) >= 2, 10)
        with running(logs / "second.log", EXACT, **options) as second:
            answer = second.chat(prompt, logprobs=True)
            assert cached_tokens(answer) >= 512
            assert answer_of(answer).is_like(right)
            assert "local CPU tier of the cache server in" in second.process.output()
    with running(logs / "third.log", EXACT, **options) as third:
        answer = third.chat(prompt, logprobs=True)
        assert cached_tokens(answer) >= 512
        assert answer_of(answer).is_like(right)


def stored(server: Server) -> float:
    return samples(server.url)["kserve_lmcache_chunks_written_total"]


def test_without_one_a_server_starts_its_own_and_says_why(
    tmp_path: Path, cut_model: Path, logs: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    options = {"environ": environment(nowhere), "model": (f"--model_id={cut_model}",)}
    with running(logs / "alone.log", "--lmcache", "max_local_cpu_size=0.2", **options) as server:
        said = server.process.output()
        assert (
            f"starts a cache server of its own: no cache server is announced in {nowhere}" in said
        )
        prompt = long_prompt("alone", words=500)
        assert cached_tokens(server.chat(prompt)) == 0
        own = [
            each
            for each in psutil.Process(server.process.pid).children(recursive=True)
            if "kserve_lmcache.cache_server" in each.cmdline()
        ]
        assert own
    assert wait_for_end(own, 10) == []
