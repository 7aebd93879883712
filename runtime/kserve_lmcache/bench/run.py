"""One run, from the endpoints to the last line of the log."""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import aiohttp
from tqdm import tqdm

from kserve_lmcache import __version__
from kserve_lmcache.bench.arrivals import Arrivals
from kserve_lmcache.bench.client import Client, EndpointError, find_api
from kserve_lmcache.bench.load import Endpoint, Load, Phase
from kserve_lmcache.bench.records import Record, Writer
from kserve_lmcache.bench.store import BareStore
from kserve_lmcache.bench.targets import Target
from kserve_lmcache.bench.workloads import WORKLOADS, Request, Shape
from kserve_lmcache.redaction import redact_urls

_CONNECT_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        targets: the endpoints; the first is what the others are compared with.
        workload: its name; ``trace`` for a trace.
        shape: of the workload.
        arrivals: one phase each.
        seed: of all that is random.
        trace: requests of a trace, instead of a workload's.
        api: completions or chat.
        stream: whether tokens come one by one.
        model: its name; by default the first that an endpoint lists.
        warm_up: requests of each replica that do not count.
        timeout: seconds without a sign of life after which a request is an error.
        api_key: for the header; in no log.
        redis_url: of the store whose bytes are counted, or empty.
        extra: of each request's body.
        command: for the log.
    """

    targets: Sequence[Target]
    workload: str
    shape: Shape
    arrivals: Sequence[Arrivals]
    seed: int
    trace: Sequence[Request] = ()
    api: str = "completions"
    stream: bool = True
    model: str | None = None
    warm_up: int = 2
    timeout: float = 600.0
    api_key: str | None = None
    redis_url: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ()

    def phases(self) -> list[Phase]:
        """Each with prompts of its own, so that none finds those of the one before in a cache."""
        return [
            Phase(
                self.workload,
                arrivals,
                {target.label: self._requests(target, number) for target in self.targets},
            )
            for number, arrivals in enumerate(self.arrivals)
        ]

    def _requests(self, target: Target, number: int) -> list[Request]:
        if self.trace:
            return list(self.trace)
        shape = replace(self.shape, replicas=len(target.urls))
        return WORKLOADS[self.workload].make(shape, self.seed + number)


def run(plan: Plan, log: Writer, servers: Mapping[str, float]) -> bool:
    """Measure, and write the log.

    Args:
        plan: what.
        log: where to; closed by the caller.
        servers: seconds to ready of those that were started for it.

    Returns:
        Whether it was ended before its time, by Ctrl-C or SIGTERM.

    Raises:
        EndpointError: an endpoint does not answer, or not as the OpenAI API does.
        StoreError: the store does not answer.
    """
    return asyncio.run(_run(plan, log, servers))


async def _run(plan: Plan, log: Writer, servers: Mapping[str, float]) -> bool:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(_measure(plan, log, servers))

    def stop() -> None:
        # A second Ctrl-C ends the process.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await task
        interrupted = False
    except asyncio.CancelledError:
        interrupted = True
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    log.end(interrupted)
    return interrupted


async def _measure(plan: Plan, log: Writer, servers: Mapping[str, float]) -> None:
    headers = {"Authorization": f"Bearer {plan.api_key}"} if plan.api_key else {}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=75)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    with ExitStack() as stack:
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=timeout, trust_env=True
        ) as session:
            endpoints = [await _connected(plan, target, session) for target in plan.targets]
            phases = plan.phases()
            _write_head(plan, log, endpoints, servers)
            store = stack.enter_context(BareStore(plan.redis_url)) if plan.redis_url else None
            bar = stack.enter_context(
                tqdm(
                    total=sum(phase.count for phase in phases),
                    unit="request",
                    dynamic_ncols=True,
                    file=sys.stderr,
                    # None: no bar where nobody looks at it.
                    disable=None,
                )
            )
            errors = 0

            def progress(record: Record) -> None:
                nonlocal errors
                if record.error is not None:
                    errors += 1
                    bar.set_postfix(errors=errors, refresh=False)
                bar.update()

            load = Load(endpoints, log, plan.seed, session, store, progress, plan.shape.pause)
            bar.set_description("warm-up")
            await load.warm_up(plan.warm_up)
            bar.reset()
            for phase in phases:
                bar.set_description(f"{phase.workload}, {phase.arrivals}")
                await load.run(phase)


async def _connected(plan: Plan, target: Target, session: aiohttp.ClientSession) -> Endpoint:
    clients = []
    for url in target.urls:
        api, models = await find_api(session, url)
        if plan.model and models and plan.model not in models:
            raise EndpointError(
                f"{redact_urls(api)} has no model {plan.model}; it has {', '.join(models)}"
            )
        model = plan.model or next(iter(models), "")
        client = Client(session, api, model, plan.api, plan.stream, plan.timeout, plan.extra)
        await client.prepare()
        clients.append(client)
    # Endpoints may share a store: what one of them computes must not be warm for another.
    return Endpoint(target.label, clients, salt=f"{plan.seed} {target.label}")


def _write_head(
    plan: Plan, log: Writer, endpoints: Sequence[Endpoint], servers: Mapping[str, float]
) -> None:
    log.run(
        version=__version__,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=redact_urls(shlex.join(plan.command)),
        workload=plan.workload,
        shape=asdict(plan.shape),
        arrivals=[str(arrivals) for arrivals in plan.arrivals],
        seed=plan.seed,
        endpoints=[
            {
                **target.shown(),
                "prompts": "token ids" if endpoint.clients[0].token_ids else "words",
            }
            for target, endpoint in zip(plan.targets, endpoints, strict=True)
        ],
        model=endpoints[0].clients[0].model,
        api=plan.api,
        stream=plan.stream,
        machine=f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
    )
    for name, seconds in servers.items():
        log.server(name=name, seconds_to_ready=seconds)
