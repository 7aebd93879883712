"""KV-cache events of real servers: a picker that follows them, a restart, three workers."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.event_readers import Reader, reading
from tests.support.picker import picker
from tests.support.ports import free_port
from tests.support.server import SMALL, Server, engine_environment, running
from tests.support.waiting import until

BLOCK, CHUNK = 128, 256
# An odd number of conversations: two replicas that take turns see each one alternately.
CONVERSATIONS, ROUNDS, PREFIX = 7, 3, 4 * CHUNK
TENANT = "X-Tenant-Id"


@dataclass
class Replica:
    """A server with events."""

    server: Server
    endpoint: str
    replay: str

    def ask(self, prompt: Sequence[int], **fields: object) -> tuple[int, float]:
        """The tokens of a prompt that were cached, and the seconds to the first token."""
        began, first, cached = time.monotonic(), 0.0, 0
        stream = self.server.client().completions.create(
            model=self.server.name,
            prompt=list(prompt),
            max_tokens=2,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=fields or None,
        )
        for part in stream:
            first = first or time.monotonic() - began
            if part.usage is not None and part.usage.prompt_tokens_details is not None:
                cached = part.usage.prompt_tokens_details.cached_tokens or 0
        return cached, first

    def forget_engine(self) -> None:
        """Empty vLLM's own prefix cache: what is found then comes from the tiers."""
        until(
            lambda: (
                httpx.post(f"{self.server.url}/openai/reset_prefix_cache", timeout=30).status_code
                == 200
            )
        )


@contextmanager
def replica(
    log: Path, *flags: str, sizes: Sequence[str] = SMALL, **options: object
) -> Iterator[Replica]:
    """A server with events, ready.

    Args:
        log: where its output goes.
        flags: more flags.
        sizes: flags that keep it small.
        **options: environment variables, and ``model``, the flags of the model.
    """
    endpoint, replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    events = {
        "enable_kv_cache_events": True,
        "endpoint": endpoint.replace("127.0.0.1", "*"),
        "replay_endpoint": replay.replace("127.0.0.1", "*"),
        "topic": "kv@pod@smollm2",
    }
    model = options.pop("model", None)
    variables = {"LMCACHE_MODE": "in-process", **options}
    with running(
        log,
        f"--kv-events-config={json.dumps(events)}",
        "--enable-routes=reset-cache",
        *flags,
        environ=engine_environment(**variables),  # type: ignore[arg-type]
        sizes=sizes,
        **({"model": model} if model else {}),
    ) as server:
        yield Replica(server, endpoint, replay)


def prompts(seed: str) -> Iterator[list[int]]:
    """In each round the next prompt of each conversation: the same prefix, another end."""
    letters = random.Random(seed)
    prefixes = [letters.choices(range(1000, 40000), k=PREFIX) for _ in range(CONVERSATIONS)]
    for _ in range(ROUNDS):
        for prefix in prefixes:
            yield prefix + letters.choices(range(1000, 40000), k=20)


@dataclass
class Figures:
    """Of one way to choose replicas."""

    hit_ratio: float
    seconds: float  # to the first token, on average


def drive(
    replicas: Sequence[Replica], seed: str, choose: Callable[[Sequence[int]], int]
) -> Figures:
    """Ask all prompts one after another."""
    hits, seconds, total = 0, 0.0, 0
    for number, prompt in enumerate(prompts(seed)):
        if number % CONVERSATIONS == 0:
            for each in replicas:
                each.forget_engine()
            time.sleep(0.5)  # events of stored chunks are on their way
        cached, first = replicas[choose(prompt)].ask(prompt)
        hits += cached
        seconds += first
        total += len(prompt)
    return Figures(hits / total, seconds / (CONVERSATIONS * ROUNDS))


@pytest.mark.slow
def test_a_picker_that_follows_the_events_beats_taking_turns(logs: Path) -> None:
    with ExitStack() as stack:
        replicas = [
            stack.enter_context(
                replica(logs / f"replica-{number}.log", LMCACHE_MAX_LOCAL_CPU_SIZE="0.7")
            )
            for number in range(2)
        ]
        for each in replicas:  # the first request of a server is slow
            each.ask(random.Random("warm").choices(range(1000, 40000), k=PREFIX))
        turns = iter(range(CONVERSATIONS * ROUNDS))
        in_turn = drive(replicas, "in turn", lambda prompt: next(turns) % 2)
        endpoints = [(each.endpoint, each.replay) for each in replicas]
        choice = stack.enter_context(picker(endpoints, BLOCK))
        picked = drive(replicas, "picked", choice.choose)
    print(f"\nin turn: {in_turn}\npicked:  {picked}")
    assert picked.hit_ratio > in_turn.hit_ratio + 0.2
    assert picked.seconds < in_turn.seconds


def test_events_of_an_idle_server_and_after_a_restart(
    logs: Path, tmp_path: Path, cut_model: Path
) -> None:
    variables = {
        "LMCACHE_LOCAL_DISK": str(tmp_path / "disk"),
        "LMCACHE_MAX_LOCAL_DISK_SIZE": "1",
        "model": (f"--model_id={cut_model}",),
    }
    letters = random.Random("restart")
    prompt, salted = (letters.choices(range(1000, 40000), k=PREFIX + 5) for _ in range(2))
    with (
        replica(logs / "before.log", f"--tenant-header={TENANT}", **variables) as one,
        reading(one.endpoint, one.replay, "kv@") as reader,
    ):
        one.ask(prompt)
        one.ask(salted, cache_salt="tenant a")
        # No further request: nothing but the events' own threads tells what was stored.
        until(lambda: len(reader.hashes("cpu")) == 2 * PREFIX // BLOCK, 10)
        assert reader.hashes("cpu") <= reader.hashes("gpu")
        until(lambda: reader.hashes("storage") == reader.hashes("cpu"), 10)
        assert reader.tokens(salted, BLOCK, "tenant a") == PREFIX
        assert reader.tokens(salted, BLOCK) == 0
        one.forget_engine()
        one.ask([1, 2, 3])  # vLLM tells the reset in its next step
        until(lambda: not reader.hashes("gpu") and bool(reader.hashes("cpu")))
        assert not reader.index.dropped
        before = reader.hashes("storage")
        _both_agree(one, reader)
    with (
        replica(logs / "after.log", f"--tenant-header={TENANT}", **variables) as again,
        reading(again.endpoint, again.replay, "kv@") as reader,
    ):
        reader.catch_up()
        until(lambda: reader.hashes("storage") == before, 15)
        assert not reader.hashes("cpu")


def _both_agree(one: Replica, reader: Reader) -> None:
    """A reader that comes late has what the one has that was there from the start."""
    with reading(one.endpoint, one.replay, "kv@") as late:
        late.catch_up()
        for tier in ("gpu", "cpu", "storage"):
            assert late.hashes(tier) == reader.hashes(tier), tier


@pytest.mark.slow
def test_a_chunk_is_announced_once_all_workers_have_it(logs: Path, cut_model: Path) -> None:
    """SmolLM2 has three KV heads, one for each worker."""
    sizes = ("--max-model-len=1024", "--kv-cache-memory-bytes=64M", "--enforce-eager")
    variables = {
        "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.1",
        # By itself vLLM wants a NUMA node for each worker.
        "VLLM_CPU_OMP_THREADS_BIND": "0|1|0",
        "model": (f"--model_id={cut_model}",),
    }
    prompt = random.Random("workers").choices(range(1000, 40000), k=2 * CHUNK + 5)
    with (
        replica(logs / "three.log", "--tensor-parallel-size=3", sizes=sizes, **variables) as one,
        reading(one.endpoint, one.replay) as reader,
    ):
        reader.catch_up()
        one.ask(prompt)
        until(lambda: len(reader.hashes("cpu")) == 2 * CHUNK // BLOCK)
        time.sleep(1)
        assert reader.index.counts() == {1}
        assert reader.tokens(prompt, BLOCK) == 2 * CHUNK
