"""Monitors the engine: the state of offloading follows from its snapshots and metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kserve_lmcache.metrics.snapshots import Snapshots, workers
from kserve_lmcache.metrics.table import STATES, metric
from kserve_lmcache.metrics.totals import add_up
from kserve_lmcache.server.status import samples
from kserve_lmcache.server.status.history import PERIOD, History

logger = logging.getLogger(__name__)

Report = Mapping[str, Any]
_LINE_SECONDS = 60.0  # between two lines in the log, while there is traffic


class Engine(Protocol):
    """What the monitor asks."""

    def snapshots(self) -> Snapshots:
        """The newest snapshots of the engine's processes; may read files."""

    def is_alive(self) -> bool:
        """Whether the engine's processes run."""

    def off_reason(self) -> str | None:
        """Why offloading is off; empty when it is on, ``None`` while the engine starts."""


class Monitor:
    """The state of offloading with its reason and time, and an hour of metrics.

    Args:
        engine: the engine.

    Attributes:
        workers: the workers' parts of their last snapshots, by rank.
        servers: the parts of cache servers that run.
    """

    def __init__(self, engine: Engine) -> None:
        self.history = History()
        self.workers: Sequence[Report] = ()
        self.servers: Sequence[Report] = ()
        self.reason = ""
        self.state = ""
        self.since = 0.0
        self._engine = engine
        self._up: dict[str, bool] = {}
        self._last_line = 0.0
        self._turn("starting", "the engine starts")

    async def run(self) -> None:
        """Look every few seconds, until the task is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("The state of offloading is unknown")
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Read the snapshots and the metrics once."""
        is_alive = self._engine.is_alive()
        now = time.time()
        snapshots, sample = await asyncio.to_thread(self._read, now, is_alive)
        self.history.add(sample)
        off = self._engine.off_reason()
        if off is None:
            return  # the engine starts
        if off:
            self._turn("off", off)
            return
        if not is_alive:
            self._turn("degraded", "the engine has ended")
            return
        self.workers = [each["worker"] for each in workers(snapshots)]
        servers = (each.get("cache_server") for each in snapshots.values())
        self.servers = [each for each in servers if each]
        failed = [each for each in self.workers if each["failure"]]
        reasons = [f"worker {each['rank']}: {each['failure']}" for each in failed] + self._lost()
        self._turn("degraded" if reasons else "on", "; ".join(reasons))
        self._log_figures(now)

    def _read(self, now: float, is_alive: bool) -> tuple[Snapshots, samples.Sample]:
        """Runs in a thread: it reads files, and adds up the metrics of every process."""
        snapshots = self._engine.snapshots()
        return snapshots, samples.read(now, add_up(snapshots, is_alive))

    def tiers(self) -> dict[str, list[Report]]:
        """The reports of each tier: of the workers and of a cache server.

        The local CPU tier is among them where a cache server has it.
        """
        found: dict[str, list[Report]] = {}
        for report in (*self.workers, *self.servers):
            for name, tier in report["tiers"].items():
                found.setdefault(name, []).append(tier)
        return found

    def _lost(self) -> list[str]:
        """Why tiers do not answer. A tier that changes makes an event."""
        reasons = []
        for name, reports in self.tiers().items():
            down = [each for each in reports if not each["up"]]
            if down:
                reasons.append(f"{name}: {down[0]['reason']}")
            up = not down
            if self._up.get(name) is not up:
                self._up[name] = up
                text = "answers" if up else f"is not asked for now: {down[0]['reason']}"
                self.history.add_event(time.time(), f"{down[0]['name'] if down else name} {text}")
        return reasons

    def _turn(self, state: str, reason: str) -> None:
        if state != self.state:
            self.since = time.time()
            text = f"Offloading is {state}" + (f": {reason}" if reason else "")
            self.history.add_event(self.since, text)
            if self.state:
                logger.info("%s", text)
        self.state, self.reason = state, reason
        for each in STATES:
            metric("offload_state", state=each).set(int(each == state))

    def _log_figures(self, now: float) -> None:
        """Log a line a minute, if there were requests."""
        ratio = self.history.hit_ratios()["1m"]
        if ratio is None or now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        first = self.history.first_token_seconds()
        tiers = ", ".join(
            f"{name} {share:.0%}"
            for name in dict.fromkeys(("local_cpu", *self.tiers()))
            if (share := self.history.hit_ratios(name)["1m"]) is not None
        )
        logger.info(
            "Last minute: %.0f %% of the prompts' tokens from offloading (%s); time to first token "
            "p50 %.3f s, p99 %.3f s in five minutes",
            100 * ratio,
            tiers or "no lookup",
            first["p50"] or 0.0,
            first["p99"] or 0.0,
        )
