"""During a fault of a cache server no request fails, no answer changes, and none is much later."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from kserve_lmcache.cache_server.announcement import announced
from tests.support.background import repeating
from tests.support.fault_bench import ARGUMENTS, CHUNK, CORE, HEAD, REQUESTS, Bench, Row
from tests.support.processes import send
from tests.support.server import Server, engine_environment, running
from tests.support.waiting import until

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400 + 5 * REQUESTS)]


class CacheServer:
    """The one that a server has started."""

    def __init__(self, server: Server) -> None:
        (first,) = (
            each
            for each in psutil.Process(server.process.pid).children(recursive=True)
            if "kserve_lmcache.cache_server" in each.cmdline()
            and "kserve_lmcache.cache_server" not in psutil.Process(each.ppid()).cmdline()
        )
        self.directory = Path(first.cmdline()[-2]).parent

    @property
    def incarnation(self) -> str:
        found = announced(self.directory)
        return "" if found is None else found.incarnation

    @property
    def serving(self) -> psutil.Process:
        until(lambda: announced(self.directory) is not None, 40)
        found = announced(self.directory)
        assert found is not None
        return psutil.Process(found.pid)


@contextlib.contextmanager
def killed(server: CacheServer) -> Iterator[None]:
    """Once; another serves soon."""
    server.serving.kill()
    yield


@contextlib.contextmanager
def killed_again_and_again(server: CacheServer) -> Iterator[None]:
    """Whenever it has served for a second, also in the middle of loads and saves."""

    def kill() -> None:
        if (found := announced(server.directory)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(found.pid).kill()

    with repeating(kill, pause=1.0):
        yield
    until(lambda: announced(server.directory) is not None, 60)


@contextlib.contextmanager
def stopped(server: CacheServer) -> Iterator[None]:
    """It stands still, for less time than it takes to be given up."""
    process = server.serving
    process.suspend()
    timer = threading.Timer(8, process.resume)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@contextlib.contextmanager
def hung(server: CacheServer) -> Iterator[None]:
    """It stands still for good, is killed after a while, and another serves."""
    before = server.incarnation
    send(server.serving.pid, signal.SIGSTOP)
    yield
    until(lambda: server.incarnation not in ("", before), 30)


FAULTS: dict[str, Callable[[CacheServer], AbstractContextManager[None]]] = {
    "none": lambda server: contextlib.nullcontext(),
    "killed": killed,
    "stands still for 8 s": stopped,
    "hangs": hung,
    "killed again and again": killed_again_and_again,
}
USUAL = ("killed", "stands still for 8 s")


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print("\n".join(["", HEAD, *map(str, rows)]))


@contextlib.contextmanager
def benched(
    log: Path, model: Path, reference: Server, size: str = "0.5"
) -> Iterator[tuple[Bench, CacheServer]]:
    environ = engine_environment(
        VLLM_CPU_OMP_THREADS_BIND=str(CORE),
        LMCACHE_MODE="multiprocess",
        LMCACHE_CHUNK_SIZE=str(CHUNK),
        LMCACHE_MAX_LOCAL_CPU_SIZE=size,
    )
    flags = {"environ": environ, "model": (f"--model_id={model}",)}
    with running(log, *ARGUMENTS, **flags) as tried:
        bench = Bench(tried, reference)
        bench.warm_up()
        yield bench, CacheServer(tried)


@pytest.fixture(scope="module")
def bench(cut_model: Path, reference: Server, logs: Path) -> Iterator[tuple[Bench, CacheServer]]:
    with benched(logs / "tried.log", cut_model, reference) as bench:
        yield bench


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in USUAL else pytest.mark.exhaustive) for name in FAULTS],
)
def test_a_fault_costs_nothing_but_hits(
    bench: tuple[Bench, CacheServer], rows: list[Row], name: str
) -> None:
    load, server = bench
    row = Row(name)
    rows.append(row)
    load.fill()
    with FAULTS[name](server):
        row.pairs += load.pairs()
    load.recover(row)
    print(f"\n{row}")
    row.check()


@pytest.mark.exhaustive
def test_a_memory_that_is_full(
    cut_model: Path, reference: Server, logs: Path, rows: list[Row]
) -> None:
    row = Row("full")
    rows.append(row)
    with benched(logs / "full.log", cut_model, reference, "0.01") as (load, _):
        load.fill()
        row.pairs += load.pairs()
        load.recover(row)
    print(f"\n{row}")
    row.check()
