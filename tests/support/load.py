"""A steady load on a running OpenAI-compatible server, and what came of each request.

For tests and benchmarks alike: the answers of every prompt are known beforehand, from a server
without any cache, so that each answer under load is either that one or wrong.

    expected = answers(reference.openai_url, reference.name, mix.prompts())
    with loaded(server.openai_url, server.name, mix, concurrency=4) as load:
        with fault.applied(target):
            time.sleep(30)
    assert not wrong(load.records, expected)
    print(summary(load.records))
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

COLD, WARM, SHARED = "cold", "warm", "shared"
MAX_TOKENS = 16
# Longer than any fault may hold a request up; what takes longer is an error.
PATIENCE = 120.0


@dataclass(frozen=True)
class Record:
    """One request.

    Attributes:
        kind: of its prompt: cold, warm or shared.
        prompt: what was asked.
        started: when it was sent, on the clock of :func:`time.monotonic`.
        ttft: seconds until the first token; ``None`` when there was none.
        seconds: until the last token, or the error.
        text: what was answered, whole or in part.
        logprobs: of its tokens, where ``logprobs=True`` was asked for.
        cached_tokens: how much of the prompt came from a cache by the server's own account.
        error: type and text, or ``None``.
    """

    kind: str
    prompt: str
    started: float
    ttft: float | None
    seconds: float
    text: str
    cached_tokens: int | None = None
    error: str | None = None
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mix:
    """What is asked, and how often.

    Attributes:
        cold: prompts that no server has seen; each is asked once, and when none is left warm and
            shared ones are asked instead.
        warm: prompts that are asked again and again; ask them once before the load starts.
        shared: prompts that the store has from another replica or an earlier process, and this
            server has not; each is asked once like a cold one.
        weights: of the three, in this order.
    """

    cold: Sequence[str] = ()
    warm: Sequence[str] = ()
    shared: Sequence[str] = ()
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def prompts(self) -> list[str]:
        """All of them."""
        return [*self.cold, *self.warm, *self.shared]

    def requests(self, seed: int = 0) -> Iterator[tuple[str, str]]:
        """Kinds and prompts, without end while there are warm ones.

        The same seed gives the same order.
        """
        choice = random.Random(seed)
        prompts = (iter(self.cold), itertools.cycle(self.warm), iter(self.shared))
        weights = dict(zip((COLD, WARM, SHARED), self.weights, strict=True))
        left = {kind: each for kind, each in zip(weights, prompts, strict=True) if weights[kind]}
        while left:
            (kind,) = choice.choices(list(left), [weights[each] for each in left])
            prompt = next(left[kind], None)
            if prompt is None:
                del left[kind]
            else:
                yield kind, prompt


@dataclass
class Load:
    """A load while it runs and after it; the records are in the order of their ends."""

    records: list[Record] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    workers: list[Future[None]] = field(default_factory=list)

    def stop(self) -> None:
        """Send no more requests; those under way go on to their ends."""
        self.stopping.set()

    def between(self, start: float, end: float) -> list[Record]:
        """The requests that were sent between two times of :func:`time.monotonic`."""
        return [record for record in self.records if start <= record.started < end]


@contextmanager
def loaded(
    url: str,
    model: str,
    mix: Mix,
    concurrency: int,
    *,
    seed: int = 0,
    patience: float = PATIENCE,
    **parameters: Any,
) -> Iterator[Load]:
    """Keep ``concurrency`` requests under way for as long as the ``with`` lasts.

    Args:
        url: of the OpenAI API, as ``http://127.0.0.1:8080/openai/v1``.
        model: its name there.
        mix: of prompts; the load ends early when it does.
        concurrency: how many clients there are, each with one request at a time.
        seed: of the order of the prompts.
        patience: seconds after which a request that does not go on is an error.
        parameters: of each request, instead of those of :func:`ask`.
    """
    load, lock, requests = Load(), threading.Lock(), mix.requests(seed)

    def work() -> None:
        while not load.stopping.is_set():
            with lock:
                kind, prompt = next(requests, ("", ""))
            if not kind:
                return
            load.records.append(ask(client, model, prompt, kind, **parameters))

    with _client(url, patience) as client, ThreadPoolExecutor(concurrency, "load") as pool:
        load.workers += [pool.submit(work) for _ in range(concurrency)]
        try:
            yield load
        finally:
            load.stop()
    for worker in load.workers:
        worker.result()


def run(
    url: str, model: str, mix: Mix, concurrency: int, seconds: float, **options: Any
) -> list[Record]:
    """The records of a load for ``seconds``, or until the mix ends.

    The other options are those of :func:`loaded`.
    """
    with loaded(url, model, mix, concurrency, **options) as load:
        wait(load.workers, timeout=seconds)
    return load.records


def ask(
    client: openai.OpenAI, model: str, prompt: str, kind: str = WARM, **parameters: Any
) -> Record:
    """One request, streamed; no error is raised, the record has it."""
    options: dict[str, Any] = {"temperature": 0, "seed": 0, "max_tokens": MAX_TOKENS}
    start = time.monotonic()
    ttft, pieces, cached, error = None, [], None, None
    logprobs: list[float] = []
    finished = False
    try:
        with client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            stream=True,
            stream_options={"include_usage": True},
            **{**options, **parameters},
        ) as stream:
            for chunk in stream:
                if chunk.usage and chunk.usage.prompt_tokens_details:
                    cached = chunk.usage.prompt_tokens_details.cached_tokens
                for choice in chunk.choices:
                    if choice.delta.content:
                        ttft = ttft or time.monotonic() - start
                        pieces.append(choice.delta.content)
                    if choice.logprobs and choice.logprobs.content:
                        logprobs += [each.logprob for each in choice.logprobs.content]
                    finished = finished or choice.finish_reason is not None
        if not finished:
            error = "the answer ends without a reason"
    except (openai.OpenAIError, httpx.HTTPError, OSError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    seconds = time.monotonic() - start
    text = "".join(pieces)
    return Record(kind, prompt, start, ttft, seconds, text, cached, error, tuple(logprobs))


def answers(url: str, model: str, prompts: Iterable[str], **parameters: Any) -> dict[str, str]:
    """What the server answers to each prompt, one at a time.

    Raises:
        AssertionError: a request fails, or has no answer.
    """
    found = {}
    with _client(url, PATIENCE) as client:
        for prompt in prompts:
            record = ask(client, model, prompt, **parameters)
            assert record.error is None, record.error
            assert record.text, "an empty answer tells nothing"
            found[prompt] = record.text
    return found


def wrong(records: Iterable[Record], expected: Mapping[str, str]) -> list[Record]:
    """The requests that ended well with another answer than the prompt's.

    Raises:
        KeyError: the answer to a prompt is not known.
    """
    return [
        record
        for record in records
        if record.error is None and record.text != expected[record.prompt]
    ]


def failed(records: Iterable[Record]) -> list[Record]:
    """The requests that ended with an error."""
    return [record for record in records if record.error is not None]


def percentile(values: Iterable[float], share: float) -> float:
    """The least of the values that at least ``share`` (0 to 1) of them do not exceed.

    Raises:
        ValueError: there is no value.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


@dataclass(frozen=True)
class Summary:
    """The requests of one kind.

    Attributes:
        count: of all of them.
        errors: how many of them failed.
        p50: seconds to the first token, of those that have one; NaN when none has.
        p99: likewise.
    """

    count: int
    errors: int
    p50: float
    p99: float

    def __str__(self) -> str:
        return (
            f"{self.count} requests, {self.errors} errors, "
            f"TTFT p50 {self.p50 * 1000:.0f} ms, p99 {self.p99 * 1000:.0f} ms"
        )


def summary(records: Sequence[Record]) -> dict[str, Summary]:
    """By kind, those kinds that there are."""
    found = {}
    for kind in (COLD, WARM, SHARED):
        mine = [record for record in records if record.kind == kind]
        times = [record.ttft for record in mine if record.ttft is not None] or [math.nan]
        if mine:
            errors = len(failed(mine))
            p50, p99 = (percentile(times, share) for share in (0.5, 0.99))
            found[kind] = Summary(len(mine), errors, p50, p99)
    return found


def _client(url: str, patience: float) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", timeout=patience, max_retries=0)
