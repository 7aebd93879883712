"""The life cycle of the server."""

from __future__ import annotations

import asyncio
from enum import Enum


class State(Enum):
    """The states, in their order; a server never goes back."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    DRAINING = "draining"
    FAILED = "failed"


class Lifecycle:
    """The state, its reason, and the number of active requests."""

    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason = "the engine is starting"
        self.active = 0

    @property
    def takes_requests(self) -> bool:
        """Whether a new request is admitted."""
        return self.state in (State.READY, State.LEAVING)

    @property
    def is_ready(self) -> bool:
        """Whether balancers should send requests here, which readiness probes tell them."""
        return self.state is State.READY

    @property
    def is_leaving(self) -> bool:
        """Whether requests are admitted that balancers should have sent elsewhere."""
        return self.state is State.LEAVING

    @property
    def alive(self) -> bool:
        """Whether the server can work without a restart."""
        return self.state is not State.FAILED

    def ready(self) -> None:
        """Admit requests from now on."""
        self.state, self.reason = State.READY, ""

    def leave(self) -> None:
        """Fail readiness and admit requests all the same; a failed server stays failed."""
        if self.state is not State.FAILED:
            self.state, self.reason = State.LEAVING, "the server is shutting down"

    def drain(self) -> None:
        """Admit no more requests; a failed server stays failed."""
        if self.state is not State.FAILED:
            self.state, self.reason = State.DRAINING, "the server is shutting down"

    def fail(self, reason: str) -> None:
        """Record a failure that only a restart fixes."""
        self.state, self.reason = State.FAILED, reason

    async def idle(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for active requests to end; returns whether all have ended."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self.active:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True
