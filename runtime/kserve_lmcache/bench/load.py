"""Sends a workload to the endpoints, in turns, and writes down what comes of each request.

With several endpoints, a closed loop loads one at a time, for a slice of the workload: at
concurrency 1 they take turns request by request, at a higher one after every ``4 * concurrency``
requests, so that each is measured alone and what else the machine does weighs on all alike. Which
is first changes at random. In an open loop all of them get every request at its time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

import aiohttp

from kserve_lmcache.bench import tiers
from kserve_lmcache.bench.arrivals import Arrivals, poisson
from kserve_lmcache.bench.client import Client, metrics_url
from kserve_lmcache.bench.prompts import Segment
from kserve_lmcache.bench.records import Record, Scrape, Writer
from kserve_lmcache.bench.store import BareStore
from kserve_lmcache.bench.workloads import REMOTE, Request

_SLICE = 4  # requests of each client, where there is more than one
_SCRAPE_SECONDS = 5.0


@dataclass
class Endpoint:
    """What is measured, connected.

    Attributes:
        label: its name.
        clients: one a replica.
        salt: of its prompts.
    """

    label: str
    clients: list[Client]
    salt: str
    _turn: int = field(default=0, init=False)

    def replica(self, request: Request) -> int:
        """The one to ask: the request's, else the next in turn."""
        if request.replica is not None:
            return request.replica % len(self.clients)
        self._turn += 1
        return (self._turn - 1) % len(self.clients)


@dataclass(frozen=True)
class Phase:
    """A workload at one load.

    Attributes:
        workload: its name.
        arrivals: when requests are sent.
        requests: by the endpoint's label: an endpoint with more replicas may have more of them.
    """

    workload: str
    arrivals: Arrivals
    requests: dict[str, list[Request]]

    @property
    def count(self) -> int:
        """Of all endpoints' requests."""
        return sum(map(len, self.requests.values()))


class Load:
    """One run.

    Args:
        endpoints: to measure.
        log: where the records go.
        seed: of the order of the endpoints and of the arrivals.
        store: whose bytes are counted at every warm remote request; the run must have it alone.
        progress: called at the end of every request with its record.
        pause: seconds between the turns of the endpoints.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        log: Writer,
        seed: int,
        session: aiohttp.ClientSession,
        store: BareStore | None = None,
        progress: Callable[[Record], None] = lambda record: None,
        pause: float = 0.0,
    ) -> None:
        self._endpoints = endpoints
        self._log = log
        self._seed = seed
        self._session = session
        self._store = store
        self._progress = progress
        self._pause = pause
        self._order = random.Random(seed)  # noqa: S311
        self._begin = time.perf_counter()
        self._slice = 0
        self._ended: dict[tuple[str, int], asyncio.Event] = {}

    async def warm_up(self, count: int) -> None:
        """Requests that no figure counts: connections, and what a server does once.

        Args:
            count: of each replica.
        """
        for number in range(count):
            for endpoint in self._endpoints:
                for index, client in enumerate(endpoint.clients):
                    prompt = [Segment(f"warm-up {number} {index}", 64)]
                    await client.ask(client.body(prompt, endpoint.salt, 4))

    async def run(self, phase: Phase) -> None:
        """All requests of a phase."""
        self._ended = {}
        await self._scrape(phase)
        scraper = asyncio.ensure_future(self._keep_scraping(phase))
        try:
            if phase.arrivals.is_open:
                self._slice += 1
                await asyncio.gather(*(self._open(phase, each) for each in self._endpoints))
            else:
                await self._closed(phase, phase.arrivals.concurrency or 1)
        finally:
            scraper.cancel()
            with suppress(asyncio.CancelledError):
                await scraper
            # Also after Ctrl-C: what was measured until now has its tiers.
            await self._scrape(phase)

    async def _closed(self, phase: Phase, concurrency: int) -> None:
        alone = len(self._endpoints) == 1
        slices = {
            endpoint.label: _slices(phase.requests[endpoint.label], concurrency, alone)
            for endpoint in self._endpoints
        }
        for number in sorted({number for each in slices.values() for number in each}):
            endpoints = [each for each in self._endpoints if number in slices[each.label]]
            self._order.shuffle(endpoints)
            for endpoint in endpoints:
                self._slice += 1
                if not alone:
                    await asyncio.sleep(self._pause)
                await self._work(phase, endpoint, slices[endpoint.label][number], concurrency)

    async def _work(
        self,
        phase: Phase,
        endpoint: Endpoint,
        requests: Sequence[tuple[int, Request]],
        concurrency: int,
    ) -> None:
        for group, members in groupby(requests, key=lambda each: each[1].group):
            listed = list(members)
            pause = listed[0][1].pause
            if pause and self._is_first(endpoint, group):
                await asyncio.sleep(pause)
            waiting = iter(listed)

            async def client(waiting: Iterable[tuple[int, Request]] = waiting) -> None:
                for index, request in waiting:
                    await self._one(phase, endpoint, index, request)

            await asyncio.gather(*(client() for _ in range(concurrency)))

    def _is_first(self, endpoint: Endpoint, group: int) -> bool:
        """Whether this is the first request of a group, of which each may be its own slice."""
        key = (f"group of {endpoint.label}", group)
        if key in self._ended:
            return False
        self._ended[key] = asyncio.Event()
        return True

    async def _open(self, phase: Phase, endpoint: Endpoint) -> None:
        requests = phase.requests[endpoint.label]
        rate = phase.arrivals.rate
        if rate is not None:
            times = poisson(rate, len(requests), self._seed)
        else:
            times = [request.due or 0.0 for request in requests]
        start = time.perf_counter()

        async def send(index: int, request: Request, due: float) -> None:
            await self._one(phase, endpoint, index, request, due=start - self._begin + due)

        tasks = []
        try:
            for index, (request, due) in enumerate(zip(requests, times, strict=True)):
                await asyncio.sleep(max(start + due - time.perf_counter(), 0))
                tasks.append(asyncio.ensure_future(send(index, request, due)))
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _one(
        self,
        phase: Phase,
        endpoint: Endpoint,
        index: int,
        request: Request,
        due: float | None = None,
    ) -> None:
        replica = endpoint.replica(request)
        client = endpoint.clients[replica]
        body = client.body(request.prompt, endpoint.salt, request.output_tokens)
        ended = asyncio.Event()
        if request.session is not None:
            before = self._ended.get((endpoint.label, request.session))
            self._ended[endpoint.label, request.session] = ended
            if before is not None:
                await before.wait()
        counted = self._store if request.kind == REMOTE else None
        sent = counted.sent_bytes() if counted else 0
        slice_, started = self._slice, time.perf_counter() - self._begin
        answer = await client.ask(body)
        ended.set()
        remote = counted.sent_bytes() - sent if counted else None
        bare = counted.read_seconds(remote) if counted and remote else None
        record = Record(
            endpoint=endpoint.label,
            replica=replica,
            workload=phase.workload,
            phase=str(phase.arrivals),
            index=index,
            kind=request.kind,
            length=request.tokens,
            session=request.session,
            turn=request.turn,
            slice=slice_,
            due=due,
            started=started,
            ttft=answer.ttft,
            e2e=answer.e2e,
            gaps=[round(gap, 7) for gap in answer.gaps],
            prompt_tokens=answer.usage.get("prompt_tokens"),
            output_tokens=answer.usage.get("completion_tokens"),
            cached_tokens=answer.cached_tokens,
            remote_bytes=remote,
            bare_seconds=bare,
            error=answer.error,
        )
        self._log.request(record)
        self._progress(record)

    async def _keep_scraping(self, phase: Phase) -> None:
        while True:
            await asyncio.sleep(_SCRAPE_SECONDS)
            await self._scrape(phase)

    async def _scrape(self, phase: Phase) -> None:
        """What there is; an endpoint without metrics has none in the log."""
        timeout = aiohttp.ClientTimeout(total=5)
        for endpoint in self._endpoints:
            for replica, client in enumerate(endpoint.clients):
                try:
                    async with self._session.get(
                        metrics_url(client.url), timeout=timeout
                    ) as response:
                        text = await response.text()
                        found = tiers.counters(text) if response.status == 200 else {}
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
                    continue
                if found:
                    at = time.perf_counter() - self._begin
                    self._log.scrape(
                        Scrape(endpoint.label, replica, str(phase.arrivals), at, found)
                    )


def _slices(
    requests: Sequence[Request], concurrency: int, alone: bool
) -> dict[int, list[tuple[int, Request]]]:
    """The requests with their indices, cut where another endpoint takes its turn.

    Equal numbers are the same requests to each of the endpoints.
    """
    size = 1 if concurrency == 1 else _SLICE * concurrency
    found: dict[int, list[tuple[int, Request]]] = {}
    for place, request in enumerate(requests):
        index = place if request.index is None else request.index
        found.setdefault(0 if alone else index // size, []).append((index, request))
    return found
