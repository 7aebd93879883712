"""Signals and the engine's death, in a process of its own whose engine is a mock."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc

from tests.support import mock_server
from tests.support.http import CHAT, NAME
from tests.support.ports import free_port

START_SECONDS = 90
# Imports vLLM once, and is forked for each test.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.support.mock_server"])


class Running:
    """The process, and chats with it."""

    def __init__(
        self, log: Path, pool: ThreadPoolExecutor, leave: float, drain: float, exit_on_death: bool
    ) -> None:
        self.log = log
        self.pool = pool
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.grpc = f"127.0.0.1:{free_port()}"
        grpc_port = int(self.grpc.rpartition(":")[2])
        arguments = (log, port, grpc_port, leave, drain, exit_on_death)
        self.process = _PROCESSES.Process(target=mock_server.run, args=arguments)
        self.process.start()

    def chat(self, content: str) -> httpx.Response:
        body = {"model": NAME, "messages": [{"role": "user", "content": content}]}
        return httpx.post(self.url + CHAT, json=body, timeout=30)

    def chat_meanwhile(self, content: str) -> Future[httpx.Response]:
        asked = self.pool.submit(self.chat, content)
        time.sleep(0.5)
        assert not asked.done()
        return asked

    def status(self, path: str) -> int:
        return httpx.get(self.url + path).status_code

    def is_ready(self) -> bool:
        try:
            return self.status("/v2/health/ready") == 200
        except httpx.TransportError:
            return False

    def wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert self.process.is_alive(), self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self, seconds: float) -> int | None:
        """The exit code; ``None`` while it runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def last_line(self) -> str:
        return self.log.read_text().splitlines()[-1]


@contextmanager
def running(
    log: Path, leave_seconds: float = 0, drain_seconds: float = 20, exit_on_death: bool = True
) -> Iterator[Running]:
    with ThreadPoolExecutor() as pool:
        server = Running(log, pool, leave_seconds, drain_seconds, exit_on_death)
        try:
            server.wait_until(server.is_ready, START_SECONDS)
            yield server
        finally:
            server.process.kill()
            server.process.join()


def test_a_signal_lets_what_runs_finish_and_takes_no_more(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server:
        asked = server.chat_meanwhile("sleep 3")
        server.signal(signal.SIGTERM)
        time.sleep(0.1)
        began = time.monotonic()
        assert server.status("/v2/health/ready") == 503
        assert server.status("/v2/health/live") == 200
        refused = server.chat("Hi")
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert refused.headers["retry-after"] == "1"
        assert time.monotonic() - began < 1
        assert asked.result().json() == {"said": "sleep"}
        assert server.ended(5) == 0


def test_requests_are_answered_for_the_whole_delay(tmp_path: Path) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}]}
    with (
        running(tmp_path / "log", leave_seconds=2) as server,
        httpx.Client(base_url=server.url, timeout=30) as kept_open,
    ):
        assert kept_open.post(CHAT, json=body).headers.get("connection") != "close"
        server.signal(signal.SIGTERM)
        time.sleep(0.1)
        began = time.monotonic()
        while time.monotonic() - began < 1.7:
            assert server.status("/v2/health/ready") == 503
            assert server.status("/v2/health/live") == 200
            response = kept_open.post(CHAT, json=body)
            assert (response.status_code, response.headers["connection"]) == (200, "close")
            assert server.chat("Hi").status_code == 200
        asked = server.chat_meanwhile("sleep 2")  # until after the delay
        assert server.chat("Hi").status_code == 503
        assert asked.result().status_code == 200
        assert server.ended(5) == 0


def test_without_work_the_port_is_open_for_the_whole_delay(tmp_path: Path) -> None:
    with running(tmp_path / "log", leave_seconds=1) as server:
        server.signal(signal.SIGTERM)
        assert server.ended(0.9) is None
        assert server.ended(5) == 0


def test_a_second_signal_ends_the_delay_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "log", leave_seconds=20) as server:
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        assert server.ended(1) == 128 + signal.SIGTERM


def test_the_engines_death_ends_the_delay_with_its_reason(tmp_path: Path) -> None:
    with running(tmp_path / "log", leave_seconds=20) as server:
        server.signal(signal.SIGTERM)
        assert server.chat("die").status_code == 200
        assert server.ended(5) == 1
        assert server.last_line().startswith("error: vLLM's engine has died: its processes ended")


def test_a_person_at_the_keyboard_waits_for_no_balancer(tmp_path: Path) -> None:
    with running(tmp_path / "log", leave_seconds=20) as server:
        server.signal(signal.SIGINT)
        assert server.ended(5) == 0


def test_an_idle_connection_does_not_hold_it_up(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))):
            server.signal(signal.SIGINT)
            assert server.ended(5) == 0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server:
        asked = server.chat_meanwhile("sleep 20")
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        server.signal(signal.SIGTERM)
        assert server.ended(1) == 128 + signal.SIGTERM
        assert "A second signal came" in server.last_line()
        with pytest.raises(httpx.TransportError):
            asked.result()


def test_the_end_of_the_time_for_running_requests_ends_it(tmp_path: Path) -> None:
    with running(tmp_path / "log", drain_seconds=1) as server:
        asked = server.chat_meanwhile("sleep 20")
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.ended(3) == 128 + signal.SIGTERM
        assert time.monotonic() - began > 0.8
        assert "1 requests did not finish in 1 s" in server.last_line()
        assert isinstance(asked.exception(), httpx.TransportError)


def test_the_engines_death_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    with running(tmp_path / "log") as server:
        assert server.chat("die").status_code == 200
        server.wait_until(lambda: server.status("/v2/health/live") == 503, 1)
        assert server.status("/v2/health/ready") == 503
        assert server.chat("Hi").status_code == 503
        assert server.ended(5) == 1
        assert server.last_line().startswith("error: vLLM's engine has died: its processes ended")


def test_the_engines_death_may_be_left_to_the_liveness_probe(tmp_path: Path) -> None:
    with running(tmp_path / "log", exit_on_death=False) as server:
        server.chat("die")
        server.wait_until(lambda: server.status("/v2/health/live") == 503, 1)
        assert server.ended(4) is None
        assert server.status("/v2/health/live") == 503
        server.signal(signal.SIGTERM)
        assert server.ended(5) == 1


def test_by_grpc_health_is_the_same_and_nothing_is_unloaded(tmp_path: Path) -> None:
    async def ask(url: str) -> None:
        client = InferenceGRPCClient(url)
        try:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(NAME)
            with pytest.raises(grpc.RpcError) as caught:
                await client.infer(InferRequest(NAME, [InferInput("x", [1], "BYTES", [b"Hi"])]))
            assert "/openai/v1/chat/completions" in str(caught.value)
        finally:
            await client.close()
        async with grpc.aio.insecure_channel(url) as channel:
            stub = grpc_predict_v2_pb2_grpc.GRPCInferenceServiceStub(channel)
            unload = grpc_predict_v2_pb2.RepositoryModelUnloadRequest(model_name=NAME)
            with pytest.raises(grpc.RpcError):
                await stub.RepositoryModelUnload(unload)

    with running(tmp_path / "log") as server:
        asyncio.run(ask(server.grpc))
        assert server.is_ready()
        server.signal(signal.SIGTERM)
        assert server.ended(5) == 0
