"""Whatever happens to the store, requests are answered, rightly, and about as soon as without it.

A steady load of cold, warm and shared prompts goes to a server whose only cache is the store, and
to one that has no cache at all, request by request: the second one's answer is the right one, and
its time to first token is what the first one's is compared to.

``FAULT_SECONDS=60`` lets each fault last longer than the usual seconds, and
``REMOTE_CONNECTOR=lmcache`` shows what LMCache's own connector makes of them (nothing is then
demanded of it).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from tests.support import models
from tests.support.faults import FAULTS, Fault, Target, target_of
from tests.support.load import COLD, SHARED, WARM, Record, ask, percentile
from tests.support.server import Server, cached_tokens, engine_environment, long_prompt, running
from tests.support.stores import redis_process

SECONDS = float(os.environ.get("FAULT_SECONDS", "2"))
CONNECTOR = os.environ.get("REMOTE_CONNECTOR", "kserve")
RECOVERY_SECONDS = 5.0
CHUNK = 256
# In bfloat16 a tie between two tokens may turn with the shape in which they are computed.
ARGUMENTS = ("--dtype=float32", "--no-enable-prefix-caching")


@dataclass(frozen=True)
class Pair:
    """One prompt's answers: with the store, and without any cache."""

    tried: Record
    right: Record

    @property
    def is_wrong(self) -> bool:
        return self.tried.error is None and self.tried.text != self.right.text

    @property
    def added(self) -> float:
        """Seconds to the first token that the store added."""
        assert self.right.ttft is not None
        return (self.tried.ttft or self.tried.seconds) - self.right.ttft


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

    def __str__(self) -> str:
        added = [pair.added * 1000 for pair in self.pairs]
        p50, p99 = (f"{percentile(added, share):+.0f}" for share in (0.5, 0.99))
        cells = (self.fault, len(self.pairs), self.failed, self.wrong, p50, p99)
        return "| " + " | ".join(map(str, cells)) + f" | {self.recovery:.1f} |"


HEAD = (
    "| Fault | requests | failed | wrong | added p50, ms | added p99, ms | recovery, s |\n"
    "|---|---|---|---|---|---|---|"
)


class Bench:
    """The two servers, and prompts for them."""

    def __init__(self, tried: Server, right: Server, target: Target) -> None:
        self.target = target
        self._tried, self._right = tried, right
        self._numbers = itertools.count()
        self._stored: list[str] = []

    def pairs(self, seconds: float) -> Iterator[Pair]:
        """A steady load."""
        end = time.monotonic() + seconds
        for number in itertools.count():
            kind = (COLD, WARM, SHARED)[number % 3]
            if kind == COLD:
                self._stored.append(self._new())
                prompt = self._stored[-1]
            elif kind == WARM:
                prompt = self._stored[-1]
            else:
                prompt = self._stored[number % 4]
            yield Pair(_ask(self._tried, prompt, kind), _ask(self._right, prompt, kind))
            if time.monotonic() > end:
                return

    def fill(self) -> None:
        """Let the store have what is shared."""
        self._stored = [self._new() for _ in range(4)]
        for prompt in self._stored:
            self._tried.chat(prompt, max_tokens=1)
        self.wait_for_hit(self._stored[-1])

    def wait_for_hit(self, prompt: str | None = None) -> float:
        """Seconds until a prompt that was asked comes from the store."""
        prompt = prompt or self._new()
        began = time.monotonic()
        while cached_tokens(self._tried.chat(prompt, max_tokens=1)) < CHUNK:
            assert time.monotonic() - began < 60, "the store is never used again"
            time.sleep(0.1)
        return time.monotonic() - began

    def _new(self) -> str:
        """About 550 tokens, of which two chunks are stored."""
        return long_prompt(f"n{next(self._numbers)}x", words=210)


def _ask(server: Server, prompt: str, kind: str) -> Record:
    with openai.OpenAI(base_url=server.openai_url, api_key="none", max_retries=0) as client:
        return ask(client, server.name, prompt, kind, max_tokens=6)


@pytest.fixture(scope="module")
def bench(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with (
        redis_process(tmp_path_factory.mktemp("redis")) as store,
        target_of(store, tmp_path_factory.mktemp("names")) as target,
    ):
        assert target.names is not None
        environ = engine_environment(
            LMCACHE_REMOTE_URL=target.url,
            LMCACHE_REMOTE_CONNECTOR=CONNECTOR,
            LMCACHE_LOCAL_CPU="false",
            LMCACHE_MAX_LOCAL_CPU_SIZE="1.0",
        )
        prefix = target.names.prefix
        # As many bytes to load for each operation of the prefill as the whole model has, in less
        # time: more requests for each second of a fault.
        directory = models.first_layers(tmp_path_factory.mktemp("model") / "model", 6)
        model = (f"--model_id={directory}",)
        with (
            running(
                logs / "tried.log", *ARGUMENTS, environ=environ, prefix=prefix, model=model
            ) as tried,
            running(logs / "right.log", *ARGUMENTS, "--offload=off", model=model) as right,
        ):
            yield Bench(tried, right, target)


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    rows: list[Row] = []
    yield rows
    print("\n".join(["", HEAD, *map(str, rows)]))


@pytest.mark.parametrize(
    "fault", [Fault("none", lambda target: contextlib.nullcontext()), *FAULTS.values()], ids=str
)
def test_a_fault_costs_nothing_but_hits(bench: Bench, rows: list[Row], fault: Fault) -> None:
    bench.fill()
    row = Row(fault.name)
    rows.append(row)
    with fault.applied(bench.target):
        row.pairs += bench.pairs(SECONDS)
    row.recovery = bench.wait_for_hit()
    print(f"\n{row}")
    if CONNECTOR == "kserve":
        assert row.failed == 0, [pair.tried.error for pair in row.pairs]
        assert row.wrong == 0, [(pair.tried.text, pair.right.text) for pair in row.pairs]
        assert row.recovery < 2 * RECOVERY_SECONDS  # and half of it on a machine of its own
