"""During a fault of the store no request fails, no answer changes, and none is much later.

The load and the comparison are those of :mod:`tests.support.fault_bench`; the store is the only
cache of the server.

``--remote-connector=lmcache`` shows LMCache's own connector in the same table, and checks nothing.
After a fault from which it does not recover, its server is started anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_bench import ARGUMENTS, CHUNK, CORE, HEAD, REQUESTS, Bench, Row
from tests.support.faults import FAULTS, LONG_FAULTS, Fault, Target, target_of
from tests.support.options import option
from tests.support.server import Server, engine_environment, running
from tests.support.stores import redis_process, watched_by_sentinels

CONNECTOR = option("--remote-connector")
pytestmark = [pytest.mark.alone, pytest.mark.timeout(400 + 5 * REQUESTS)]


@contextlib.contextmanager
def benched(
    directory: Path, url: str, model: Path, reference: Server, prefix: tuple[str, ...] = ()
) -> Iterator[Bench]:
    """The reference, and a server that has the store at ``url``.

    Args:
        directory: for the server's log.
        url: of the store.
        model: the reference's.
        reference: the server without any cache.
        prefix: of the command of the server that has the store.
    """
    environ = {
        **engine_environment(VLLM_CPU_OMP_THREADS_BIND=str(CORE)),
        "LMCACHE_CHUNK_SIZE": str(CHUNK),
        "LMCACHE_REMOTE_URL": url,
        "LMCACHE_REMOTE_CONNECTOR": CONNECTOR,
        "LMCACHE_LOCAL_CPU": "false",
        "LMCACHE_MAX_LOCAL_CPU_SIZE": "1.0",
    }
    # As many bytes to load for each operation of the prefill as the whole model has, in less time.
    flags: dict[str, Any] = {"prefix": prefix, "model": (f"--model_id={model}",)}
    with running(directory / "tried.log", *ARGUMENTS, environ=environ, **flags) as tried:
        bench = Bench(tried, reference)
        bench.warm_up()
        yield bench


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with (
        redis_process(tmp_path_factory.mktemp("redis")) as store,
        target_of(store, tmp_path_factory.mktemp("names")) as target,
    ):
        yield target


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print("\n".join(["", HEAD, *map(str, rows)]))


@pytest.fixture(scope="module")
def bench(
    target: Target,
    rows: list[Row],
    cut_model: Path,
    reference: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    """The servers, whose store comes when they have been ready for a while: the first row."""
    assert target.names is not None
    directory = tmp_path_factory.mktemp("bench")
    rows.append(Row("refused at the start"))
    with contextlib.ExitStack() as stack:
        with FAULTS["refused"].applied(target):
            bench = stack.enter_context(
                benched(directory, target.url, cut_model, reference, target.names.prefix)
            )
            rows[0].pairs += bench.pairs()
        bench.recover(rows[0])
        yield bench


NO_FAULT = Fault("none", lambda target: contextlib.nullcontext())
# Gone, silent, cut off, wrong. The exhaustive selection has the others.
USUAL = ("refused", "stopped", "reset in mid-value", "values bit flipped")


def check(row: Row) -> None:
    print(f"\n{row}")
    if CONNECTOR == "kserve":
        row.check()


@pytest.mark.usefixtures("bench")  # which makes the row
def test_the_store_may_come_after_the_server(rows: list[Row]) -> None:
    check(rows[0])


@pytest.mark.parametrize(
    "fault",
    [
        NO_FAULT,
        *(FAULTS[name] for name in USUAL),
        *(
            pytest.param(fault, marks=pytest.mark.exhaustive)
            for fault in (*FAULTS.values(), *LONG_FAULTS)
            if fault.name not in USUAL
        ),
    ],
    ids=str,
)
def test_a_fault_costs_nothing_but_hits(
    bench: Bench, target: Target, rows: list[Row], fault: Fault
) -> None:
    row = Row(fault.name)
    rows.append(row)
    bench.fill()
    with fault.applied(target):
        row.pairs += bench.pairs()
    bench.recover(row)
    check(row)


@pytest.mark.exhaustive
def test_a_failover_costs_nothing_but_hits(
    rows: list[Row], cut_model: Path, reference: Server, tmp_path: Path
) -> None:
    if CONNECTOR != "kserve":
        return  # LMCache's connector to sentinels stores nothing, and the server refuses it
    row = Row("failover")
    rows.append(row)
    with (
        watched_by_sentinels(tmp_path) as watched,
        benched(tmp_path, watched.url, cut_model, reference) as bench,
    ):
        bench.fill()
        before = watched.kill_primary()
        row.pairs += bench.pairs()
        watched.wait_for_another(before)
        bench.recover(row)
    check(row)
