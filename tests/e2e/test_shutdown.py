"""A server that is told to end answers for its whole delay: nobody notices that it goes."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server, engine_environment, running

DELAY = 6.0
DRAIN = 10.0


class Load:
    """Short requests one after the other, as two clients send them.

    Args:
        keep_alive: whether the client sends all of its requests by one connection.
    """

    def __init__(self, server: Server, keep_alive: bool) -> None:
        self.server = server
        self.keep_alive = keep_alive
        self.statuses: list[tuple[float, int]] = []  # the moment of each, and its answer
        self.refused_at = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.statuses) < count:
            assert time.monotonic() < deadline, self.statuses
            time.sleep(0.05)

    def end(self) -> None:
        self._thread.join(DELAY + DRAIN + 30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        body = {"model": self.server.name, "prompt": "Hi", "max_tokens": 2}
        limits = httpx.Limits(max_keepalive_connections=1 if self.keep_alive else 0)
        url = f"{self.server.openai_url}/completions"
        with httpx.Client(limits=limits, timeout=30) as client:
            while True:
                try:
                    status = client.post(url, json=body).status_code
                except httpx.TransportError:  # the port is closed
                    self.refused_at = time.monotonic()
                    return
                self.statuses.append((time.monotonic(), status))
                if status != 200:
                    return
                time.sleep(0.1)


@pytest.mark.parametrize(
    "keep_alive",
    [
        pytest.param(True, id="kept-open"),
        pytest.param(False, id="each-anew", marks=pytest.mark.exhaustive),
    ],
)
def test_every_request_of_the_delay_is_answered(tmp_path: Path, keep_alive: bool) -> None:
    arguments = (f"--drain-delay={DELAY:g}", f"--drain-timeout={DRAIN:g}")
    with running(tmp_path / "log", *arguments, environ=engine_environment()) as server:
        load = Load(server, keep_alive)
        load.wait_for(10)
        asked = time.monotonic()
        server.process.signal(signal.SIGTERM)
        time.sleep(0.3)
        ready = httpx.get(f"{server.url}/v2/health/ready").status_code
        live = httpx.get(f"{server.url}/v2/health/live").status_code
        assert (ready, live) == (503, 200)
        exit_code = server.process.wait(DELAY + DRAIN + 20)
        load.end()
    during = [status for moment, status in load.statuses if asked < moment < asked + DELAY]
    print(f"{len(during)} requests in the {DELAY:g} s after SIGTERM")
    assert exit_code == 0
    assert len(during) > DELAY  # more than one a second
    assert set(during) == {200}
    ended = load.refused_at or load.statuses[-1][0]
    assert ended - asked >= DELAY
