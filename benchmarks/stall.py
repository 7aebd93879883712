"""How long running answers stand still while a prompt is loaded, or a slow store is asked.

    python -m benchmarks.stall [--rate MB/S …] [--delay MS …] [--prompts N] [--streams N]

A server stores prompts in a Redis. For each link, a second server starts whose way to the Redis is
that link. It streams answers, and meanwhile gets prompts one after another: over a link of a given
rate those that the first server stored, of which it computes one token; over a link with a delay
new ones, which are looked up in vain and computed. Prints a Markdown table. The goal of a load is
the quiet gap and 0.15 of the load; that of a lookup is the longest gap without the delay and 10 ms.
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
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import contenders
from kserve_lmcache.bench.own import free_port

_PIECE = 1 << 16  # bytes
_QUIET_SECONDS = 5.0
_CHUNK = 256  # tokens
_LOADED, _NEW = 11 * _CHUNK + 1, _CHUNK + 1  # tokens


@dataclass(frozen=True)
class Link:
    """A way to the Redis.

    Attributes:
        rate: bytes a second; 0: as fast as it goes.
        delay: seconds until an answer arrives.
        is_lookup: whether new prompts are asked, and not those that are stored.
    """

    rate: float = 0.0
    delay: float = 0.0
    is_lookup: bool = False

    def __str__(self) -> str:
        if self.is_lookup:
            return f"lookup, answered after {1000 * self.delay:g} ms"
        return f"load, {self.rate / 1e6:g} MB/s" if self.rate else "load, any rate"


@dataclass(frozen=True)
class Row:
    """What was measured on a link, in seconds.

    Attributes:
        load: median time to the first token of the prompts.
        quiet: longest gap between tokens while no prompt came.
        median: of the longest gaps during each prompt.
        longest: of these gaps.
        goal: for ``longest``.
    """

    link: Link
    load: float
    quiet: float
    median: float
    longest: float
    goal: float


_MODES = {"in-process": contenders.ours, "multiprocess": contenders.multiprocess}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, nargs="*", default=[100.0, 0.0], help="0: any")
    parser.add_argument("--delay", type=float, nargs="*", default=[40.0])
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--mode", choices=_MODES, default="in-process")
    args = parser.parse_args()
    links = [Link(rate=rate * 1e6) for rate in args.rate]
    links += [Link(delay=delay / 1000, is_lookup=True) for delay in (0.0, *args.delay)]
    print("| link | first token, ms | quiet gap, ms | gap, ms: median | longest | goal, ms |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        start = _MODES[args.mode]
        for row in measured(links, args.prompts, args.streams, Path(name), start=start):
            figures = (row.load, row.quiet, row.median, row.longest, row.goal)
            cells = " | ".join(f"{1000 * each:.0f}" for each in figures)
            print(f"| {row.link} | {cells} |", flush=True)


def measured(
    links: Sequence[Link],
    prompts: int,
    streams: int,
    directory: Path,
    at_once: int = 1,
    start: contenders.Start | None = None,
) -> Iterator[Row]:
    """Measure each link.

    Args:
        links: those of lookups behind the one without a delay.
        prompts: of each link.
        streams: answers that run meanwhile.
        directory: for the logs of the servers.
        at_once: servers that run at the same time. All but the measured one are idle.
        start: starts a server; by default of this package.
    """
    start = start or contenders.ours
    stored = [prompt(number, _LOADED) for number in range(prompts)]
    with contenders.servers(directory) as outer:
        store = contenders.redis(outer)
        with contenders.servers(directory) as servers:
            url = start(servers, "writer", store)
            asyncio.run(store_all(url, stored, store))
        undelayed = 0.0
        for number, (link, url) in enumerate(readers(links, store, directory, at_once, start)):
            asked = stored
            if link.is_lookup:  # another link's are in the store by now
                asked = [prompt(1000 * (1 + number) + each, _NEW) for each in range(prompts)]
            seconds, quiet, gaps = asyncio.run(measure(url, asked, streams))
            load = statistics.median(seconds)
            if link.is_lookup and not link.delay:
                undelayed = max(gaps)
            goal = undelayed + 0.01 if link.is_lookup else quiet + 0.15 * load
            yield Row(link, load, quiet, statistics.median(gaps), max(gaps), goal)


def readers(
    links: Sequence[Link], store: str, directory: Path, at_once: int, start: contenders.Start
) -> Iterator[tuple[Link, str]]:
    """Each link with the address of a server behind it, which ends with its group."""
    for begin in range(0, len(links), at_once):
        group = links[begin : begin + at_once]
        with contextlib.ExitStack() as stack:
            ways = [stack.enter_context(relayed(store, link)) for link in group]
            servers = stack.enter_context(contenders.servers(directory))
            with ThreadPoolExecutor(at_once) as pool:
                starts = [
                    pool.submit(start, servers, f"reader-{begin + number}", way)
                    for number, way in enumerate(ways)
                ]
                urls = [each.result() for each in starts]
            yield from zip(group, urls, strict=True)


def prompt(number: int, tokens: int) -> list[int]:
    """The tokens of a prompt that shares no beginning with another one."""
    chance = random.Random(number)
    return [chance.randrange(1000, 40_000) for _ in range(tokens)]


async def store_all(url: str, prompts: list[list[int]], store: str) -> None:
    """Ask every prompt, and wait until all chunks are in the store.

    Raises:
        TimeoutError: they are not within a minute.
    """
    chunks = sum(len(each) // _CHUNK for each in prompts)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        for each in prompts:
            await first_token(client, each)
    async with asyncio.timeout(60):
        while contenders.stored_chunks(store) < chunks:
            await asyncio.sleep(0.1)


async def measure(
    url: str, prompts: list[list[int]], streams: int
) -> tuple[list[float], float, list[float]]:
    """Seconds to the first token of each prompt, the quiet gap, and the gap during each prompt."""
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
    return seconds, quiet, gaps


async def first_token(client: httpx.AsyncClient, text: list[int]) -> float:
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


async def tokens(client: httpx.AsyncClient, text: list[int], count: int) -> AsyncIterator[None]:
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
