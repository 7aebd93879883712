"""Whether the server takes requests, and what it is doing now."""

from __future__ import annotations

import asyncio
from enum import Enum


class State(Enum):
    """What a server goes through; there is no way back."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """The state, its reason, and the number of requests that are being answered."""

    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason = "the engine is starting"
        self.active = 0

    @property
    def takes_requests(self) -> bool:
        """Whether a new request is admitted."""
        return self.state is State.READY

    @property
    def alive(self) -> bool:
        """Whether nothing is wrong that only a restart fixes."""
        return self.state is not State.FAILED

    def ready(self) -> None:
        """A generation can succeed from now on."""
        self.state, self.reason = State.READY, ""

    def drain(self) -> None:
        """Take no more requests; a failure stays one."""
        if self.state is not State.FAILED:
            self.state, self.reason = State.DRAINING, "the server is shutting down"

    def fail(self, reason: str) -> None:
        """Only a restart can help."""
        self.state, self.reason = State.FAILED, reason

    async def idle(self, seconds: float) -> bool:
        """Wait until nothing is being answered, for at most that long; whether that is so."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.active:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True
