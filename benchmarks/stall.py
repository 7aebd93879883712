"""How long running answers stand still while a prompt is loaded, or a slow store is asked.

    python -m benchmarks.stall [--rate MB/S …] [--delay MS …] [--prompts N] [--streams N]

A server stores prompts in a Redis. For each link, a second server starts whose way to the Redis is
that link. It streams answers, and meanwhile gets prompts one after another: over a link of a given
rate those that the first server stored, over a link with a delay new ones, which are looked up in
vain. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import contenders
from kserve_lmcache.bench.own import free_port

_PIECE = 1 << 16  # bytes
_QUIET_SECONDS = 5.0
_LOADED_WORDS, _NEW_WORDS = 1400, 150  # about two tokens each


@dataclass(frozen=True)
class Link:
    """A way to the Redis.

    Attributes:
        rate: bytes a second; 0: as fast as it goes.
        delay: seconds until an answer arrives.
    """

    rate: float
    delay: float

    def __str__(self) -> str:
        if self.delay:
            return f"lookup, answered after {1000 * self.delay:g} ms"
        return f"load, {self.rate / 1e6:g} MB/s" if self.rate else "load, any rate"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, nargs="*", default=[100.0, 0.0], help="0: any")
    parser.add_argument("--delay", type=float, nargs="*", default=[40.0])
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--streams", type=int, default=2)
    args = parser.parse_args()
    links = [Link(rate * 1e6, 0) for rate in args.rate]
    links += [Link(0, delay / 1000) for delay in args.delay]
    stored = [prompt(number, _LOADED_WORDS) for number in range(args.prompts)]
    print("| link | first token, ms | quiet gap, ms | gap, ms: median | longest | goal, ms |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name, contenders.servers(Path(name)) as outer:
        store = contenders.redis(outer)
        with contenders.servers(Path(name)) as servers:
            asyncio.run(store_all(contenders.ours(servers, "writer", store), stored))
        for number, link in enumerate(links):
            asked = stored
            if link.delay:
                asked = [prompt(1000 + each, _NEW_WORDS) for each in range(args.prompts)]
            with relayed(store, link) as way, contenders.servers(Path(name)) as servers:
                url = contenders.ours(servers, f"reader-{number}", way)
                print(asyncio.run(row(url, link, asked, args.streams)), flush=True)


def prompt(number: int, words: int) -> str:
    """A prompt of its own, of about two tokens a word."""
    chance = random.Random(number)
    return " ".join(
        f"{number}" if not place else str(chance.randrange(100)) for place in range(words)
    )


async def store_all(url: str, prompts: list[str]) -> None:
    """Ask every prompt, and wait until all chunks are written."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        for each in prompts:
            await first_token(client, each)
        await asyncio.sleep(3)


async def row(url: str, link: Link, prompts: list[str], streams: int) -> str:
    """A row of the table."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await first_token(client, prompt(10_000, 300))  # what a first request makes
        arrivals: list[list[float]] = [[] for _ in range(streams)]
        tasks = [
            asyncio.create_task(stream(client, number, arrivals[number]))
            for number in range(streams)
        ]
        while not all(arrivals):
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        began = time.monotonic()
        await asyncio.sleep(_QUIET_SECONDS)
        quiet = longest_gap(arrivals, began, time.monotonic())
        seconds, gaps = [], []
        for each in prompts:
            began = time.monotonic()
            seconds.append(await first_token(client, each))
            gaps.append(longest_gap(arrivals, began, time.monotonic()))
            await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    goal = quiet + (0.01 if link.delay else 0.15 * statistics.median(seconds))
    figures = (statistics.median(seconds), quiet, statistics.median(gaps), max(gaps), goal)
    return f"| {link} | " + " | ".join(f"{1000 * each:.0f}" for each in figures) + " |"


async def first_token(client: httpx.AsyncClient, text: str) -> float:
    """Seconds until the first token of the answer."""
    began = time.monotonic()
    async for _ in tokens(client, text, 1):
        return time.monotonic() - began
    raise RuntimeError("the answer has no token")


async def stream(client: httpx.AsyncClient, number: int, arrivals: list[float]) -> None:
    """Stream answers for ever, and write down when each token arrives."""
    for again in range(1000):
        async for _ in tokens(client, prompt(20_000 + 1000 * number + again, 20), 2000):
            arrivals.append(time.monotonic())


async def tokens(client: httpx.AsyncClient, text: str, count: int) -> AsyncIterator[None]:
    body = {"model": "small", "prompt": text, "max_tokens": count, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    async with client.stream("POST", "/openai/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                yield


def longest_gap(arrivals: list[list[float]], began: float, ended: float) -> float:
    """The longest time between two tokens of an answer, of those that end after ``began``."""
    return max(
        after - before
        for each in arrivals
        for before, after in itertools.pairwise(each)
        if after > began and before < ended
    )


@contextlib.contextmanager
def relayed(store: str, link: Link) -> Iterator[str]:
    """The address of a relay to the store, which is a process of its own."""
    port = free_port()
    target = int(store.rpartition(":")[2])
    relay = multiprocessing.get_context("spawn").Process(
        target=run_relay, args=(port, target, link), daemon=True
    )
    relay.start()
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        relay.terminate()
        relay.join()


def run_relay(port: int, target: int, link: Link) -> None:
    """Carry bytes between clients and the store; all answers share the link's rate."""
    free_at = 0.0

    async def carry(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_answer: bool
    ) -> None:
        nonlocal free_at
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_PIECE):
                if is_answer and link.rate:
                    free_at = max(free_at, time.monotonic()) + len(data) / link.rate
                    await asyncio.sleep(free_at - time.monotonic())
                if is_answer and link.delay:
                    await asyncio.sleep(link.delay)
                sink.write(data)
                await sink.drain()
        sink.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(
            carry(reader, far_writer, is_answer=False), carry(far_reader, writer, is_answer=True)
        )

    async def serve() -> None:
        async with await asyncio.start_server(connect, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
