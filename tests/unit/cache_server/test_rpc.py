"""Calls find a thread however many others wait for tiers."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from kserve_lmcache.cache_server.messages import Found, Hello, Wait, Welcome
from kserve_lmcache.cache_server.rpc import Client, serve

WELCOME = Welcome("incarnation", "segment", 2**20, 256, 2.05)


def test_calls_that_wait_delay_no_other_call(tmp_path: Path) -> None:
    are_fetched = threading.Event()

    def wait(_: Any) -> Found:
        assert are_fetched.wait(30)
        return Found(0, 0, {})

    socket = tmp_path / "socket"
    server = serve(socket, {"hello": lambda _: WELCOME, "wait": wait})
    try:
        with closing(Client(socket)) as client:
            waiting = [client.begin("wait", Wait(number, 30), 30) for number in range(200)]
            for _ in range(10):
                assert client.call("hello", Hello(), 5) == WELCOME
            assert not any(call.done() for call in waiting)
            are_fetched.set()
            assert all(call.result() == Found(0, 0, {}) for call in waiting)
    finally:
        are_fetched.set()
        server.stop(None).wait()
