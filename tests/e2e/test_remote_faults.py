"""During a fault of the store no request fails, no answer changes, and none is much later.

A steady load of cold, warm and shared prompts goes to a server whose only cache is the store, and
to one that has no cache at all, request by request. The second one's answer is the right one, in
text and probabilities, and its time to first token is what the first one's is compared to.

``--remote-connector=lmcache`` shows LMCache's own connector in the same table, and checks nothing.
After a fault from which it does not recover, its server is started anew.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest

from tests.support.answers import Record, ask
from tests.support.faults import FAULTS, LONG_FAULTS, Fault, Target, target_of
from tests.support.options import option
from tests.support.server import (
    START_SECONDS,
    Server,
    cached_tokens,
    engine_environment,
    long_prompt,
    running,
)
from tests.support.stores import redis_process, watched_by_sentinels

REQUESTS = option("--fault-requests")
CONNECTOR = option("--remote-connector")
# Of fewer requests the slowest one stands for the 99th percentile.
TAIL = 0.99 if REQUESTS >= 100 else 1.0
# Milliseconds. The slowest request of all that was ever seen here is 224 above the other server's;
# LMCache's own connector waits 3,000 for a store that is silent.
MOST_ADDED = 1000
RECOVERY_SECONDS = 5.0
NEVER_SECONDS = 60.0  # after which nobody waits for an answer or for a hit any more
CHUNK = 128
SHARED_PROMPTS = 4
# In bfloat16 a tie between two tokens may turn with the shape in which they are computed.
ARGUMENTS = ("--dtype=float32", "--no-enable-prefix-caching")
# A worker waits on its core for a second after its last token: this one's is not the reference's.
CORE = max(os.sched_getaffinity(0))
pytestmark = pytest.mark.timeout(400 + 5 * REQUESTS)


@dataclass(frozen=True)
class Pair:
    """One prompt's answers: with the store, and without any cache."""

    tried: Record
    right: Record

    @property
    def is_wrong(self) -> bool:
        return self.tried.error is None and not self.tried.answer.is_like(self.right.answer)


@dataclass
class Row:
    """What came of a fault."""

    fault: str
    pairs: list[Pair] = field(default_factory=list)
    recovery: float = 0.0

    @property
    def failed(self) -> int:
        return sum(pair.tried.error is not None for pair in self.pairs)

    @property
    def wrong(self) -> int:
        return sum(pair.is_wrong for pair in self.pairs)

    def added(self, share: float) -> float:
        """Milliseconds: a quantile of the time to first token, less the one without a store."""
        tried = [pair.tried.ttft or pair.tried.seconds for pair in self.pairs]
        right = [pair.right.ttft for pair in self.pairs]
        return float(numpy.quantile(tried, share) - numpy.quantile(right, share)) * 1000

    def check(self) -> None:
        """Print the row, and check that the fault cost nothing but hits, which came back."""
        print(f"\n{self}")
        if CONNECTOR == "kserve":
            assert self.failed == 0, [pair.tried.error for pair in self.pairs]
            assert self.wrong == 0, [pair for pair in self.pairs if pair.is_wrong]
            assert self.added(TAIL) < MOST_ADDED
            assert self.recovery < RECOVERY_SECONDS

    def __str__(self) -> str:
        median, tail = (f"{self.added(share):+.0f}" for share in (0.5, TAIL))
        recovery = f"{self.recovery:.1f}" if self.recovery < NEVER_SECONDS else "never"
        cells = (self.fault, len(self.pairs), self.failed, self.wrong, median, tail, recovery)
        return "| " + " | ".join(map(str, cells)) + " |"


TAIL_NAME = "p99" if TAIL < 1 else "slowest"
HEAD = (
    f"| Fault | requests | failed | wrong | added p50, ms | added {TAIL_NAME}, ms | recovery, s |\n"
    "|---|---|---|---|---|---|---|"
)


class Bench:
    """The two servers, and prompts for them."""

    def __init__(self, tried: Server, right: Server) -> None:
        self._tried, self._right = tried, right
        self._clients = {id(server): server.client() for server in (tried, right)}
        self._numbers = itertools.count()
        self._stored: list[str] = []

    def pairs(self) -> Iterator[Pair]:
        """A steady load."""
        for number in range(REQUESTS):
            if number % 3 == 0:  # a cold one, and then the same again
                self._stored.append(self._new())
            prompt = self._stored[-1]
            if number % 3 == 2:
                prompt = self._stored[number % min(SHARED_PROMPTS, len(self._stored))]
            pair = Pair(self._ask(self._tried, prompt), self._ask(self._right, prompt))
            assert pair.right.ttft is not None, pair.right.error
            yield pair

    def warm_up(self) -> None:
        """The first request of a server makes what was left for it."""
        prompt = self._new()
        for server in (self._tried, self._right):
            self._ask(server, prompt)

    def fill(self) -> None:
        """Let the store have what is shared."""
        self._stored = [self._new() for _ in range(SHARED_PROMPTS)]
        for prompt in self._stored:
            self._tried.chat(prompt, max_tokens=1)
        assert self.wait_for_hit(self._stored[-1]) < NEVER_SECONDS

    def wait_for_hit(self, prompt: str | None = None) -> float:
        """Seconds until a prompt that was asked comes from the store; infinite for never."""
        prompt = prompt or self._new()
        began = time.monotonic()
        with contextlib.suppress(openai.APIError):
            while time.monotonic() - began < NEVER_SECONDS:
                if cached_tokens(self._tried.chat(prompt, max_tokens=1)) >= CHUNK:
                    return time.monotonic() - began
                time.sleep(0.1)
        return math.inf

    def recover(self, row: Row) -> None:
        """See how long that takes; a server to which hits never come back begins anew."""
        row.recovery = self.wait_for_hit()
        if row.recovery > NEVER_SECONDS:
            self._tried.process.stop()
            self._tried.process = self._tried.process.again()
            self._tried.process.wait_until(self._tried.is_ready, START_SECONDS)

    def _new(self) -> str:
        """280 to 340 tokens, of which two chunks are stored."""
        return long_prompt(f"n{next(self._numbers)}x", words=84)

    def _ask(self, server: Server, prompt: str) -> Record:
        client = self._clients[id(server)].with_options(timeout=NEVER_SECONDS)
        return ask(client, server.name, prompt, max_tokens=4)


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


@pytest.mark.usefixtures("bench")  # which makes the row
def test_the_store_may_come_after_the_server(rows: list[Row]) -> None:
    rows[0].check()


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
    row.check()


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
    row.check()
