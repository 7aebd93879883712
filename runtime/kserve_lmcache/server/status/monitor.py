"""Watches the engine: its reports and its counts, from which the state of offloading follows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from kserve_lmcache.metrics.table import STATES, metric
from kserve_lmcache.server.status import samples
from kserve_lmcache.server.status.history import PERIOD, History

logger = logging.getLogger(__name__)

Report = Mapping[str, Any]
_PATIENCE = 10.0  # seconds for the workers' reports: who is asked answers between two steps
_LINE_EVERY = 60.0  # seconds between two lines in the log, where there was traffic


class Monitor:
    """State, and since when and why, with the workers' last reports and an hour of counts.

    Args:
        reports: gives the report of every worker's connector.
        off: why offloading is off; empty when it is on.
    """

    def __init__(
        self, reports: Callable[[], Awaitable[Sequence[Report]]], off: Callable[[], str | None]
    ) -> None:
        self.history = History()
        self.workers: Sequence[Report] = ()
        self.reason = ""
        self.state = ""
        self.since = 0.0
        self._reports = reports
        self._off = off
        self._up: dict[str, bool] = {}
        self._last_line = 0.0
        self._turn("starting", "the engine starts")

    async def run(self) -> None:
        """Look every few seconds, until it is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("The state of offloading could not be told")
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Read the workers' reports and the counts, once."""
        now = time.time()
        self.history.add(await asyncio.to_thread(samples.read, now))
        off = self._off()
        if off is None:
            return  # it starts
        if off:
            self._turn("off", off)
            return
        try:
            self.workers = await asyncio.wait_for(self._reports(), _PATIENCE)
        except Exception as error:
            self._turn("degraded", f"the workers do not answer: {type(error).__name__}")
            return
        reasons = [
            *(f"worker {number}: {report['failure']}" for number, report in self._failed()),
            *self._lost(),
        ]
        self._turn("degraded" if reasons else "on", "; ".join(reasons))
        self._say_figures(now)

    def tiers(self) -> dict[str, list[Report]]:
        """The workers' reports of each tier behind the local one."""
        found: dict[str, list[Report]] = {}
        for report in self.workers:
            for name, tier in report["tiers"].items():
                found.setdefault(name, []).append(tier)
        return found

    def _failed(self) -> list[tuple[int, Report]]:
        return [(number, each) for number, each in enumerate(self.workers) if each["failure"]]

    def _lost(self) -> list[str]:
        """Why tiers do not answer; what changed is an event."""
        reasons = []
        for name, reports in self.tiers().items():
            down = [each for each in reports if not each["up"]]
            if down:
                reasons.append(f"{name}: {down[0]['reason']}")
            up = not down
            if self._up.get(name) is not up:
                self._up[name] = up
                text = "answers" if up else f"is not asked for now: {down[0]['reason']}"
                self.history.happened(time.time(), f"{down[0]['name'] if down else name} {text}")
        return reasons

    def _turn(self, state: str, reason: str) -> None:
        if state != self.state:
            self.since = time.time()
            text = f"Offloading is {state}" + (f": {reason}" if reason else "")
            self.history.happened(self.since, text)
            if self.state:
                logger.info("%s", text)
        self.state, self.reason = state, reason
        for each in STATES:
            metric("offload_state", state=each).set(int(each == state))

    def _say_figures(self, now: float) -> None:
        """The line of the minute, if anything was asked."""
        ratio = self.history.hit_ratios()["1m"]
        if ratio is None or now - self._last_line < _LINE_EVERY:
            return
        self._last_line = now
        first = self.history.first_token_seconds()
        tiers = ", ".join(
            f"{name} {share:.0%}"
            for name in ("local_cpu", *self.tiers())
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
