"""What stands in front of every route: keys, limits, cancelling, ids."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kserve_lmcache.engine.tenant import TENANT
from tests.support.http import CHAT, NAME, PREFIX, HTTPServer, serving
from tests.support.waiting import until

TOKENIZE = f"{PREFIX}/tokenize"
KEY = {"Authorization": "Bearer right"}


class Slow:
    """A handler that waits, and knows who has come and who was cancelled."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self.go_on = threading.Event()

    async def __call__(self, request: Any, raw_request: Any) -> Any:
        self.entered.release()
        try:
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"said": "done"}


async def stream_slowly(request: Any, raw_request: Any) -> Any:
    async def events() -> Any:
        for number in range(100):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.05)

    return events()


@pytest.fixture(scope="module")
def guarded() -> Iterator[HTTPServer]:
    cors = {"allow_origins": ["https://here"], "allow_methods": ["*"], "allow_headers": ["*"]}
    with serving(
        api_keys=("right", "second"), cors=cors, header_count=30, header_bytes=5000
    ) as server:
        yield server


@pytest.mark.parametrize("path", [CHAT, TOKENIZE, "/v1/models/m:predict", "/v2/models/m/infer"])
@pytest.mark.parametrize("value", [None, "Bearer wrong", "Basic right", "right"])
def test_without_a_key_nothing_is_inferred(
    guarded: HTTPServer, path: str, value: str | None
) -> None:
    headers = {"Authorization": value} if value else {}
    response = guarded.client.post(path, json=guarded.chat(), headers=headers)
    assert response.status_code == 401
    assert "error" in response.json()


MESSAGES = f"{PREFIX}/v1/messages"


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens"])
def test_anthropics_clients_send_the_key_in_a_header_of_their_own(
    guarded: HTTPServer, path: str
) -> None:
    def status(where: str, *keys: str) -> int:
        headers = [("x-api-key", key) for key in keys]
        return guarded.client.post(where, json={}, headers=headers).status_code

    assert status(path, "right") == 400  # of the body, which is empty
    assert status(path, "second") == 400
    for keys in ([], ["wrong"], ["Bearer right"], [""]):
        assert status(path, *keys) == 401
    for other in (CHAT, f"{PREFIX}/v1/responses", f"{PREFIX}/v1/messagesx"):
        assert status(other, "right") == 401


def test_each_key_opens(guarded: HTTPServer) -> None:
    for key in ("right", "second"):
        headers = {"Authorization": f"Bearer {key}"}
        assert guarded.client.post(CHAT, json=guarded.chat(), headers=headers).status_code == 200
    assert guarded.client.get(f"{PREFIX}/v1/models").status_code == 401
    assert guarded.client.get(f"{PREFIX}/openapi.json").status_code == 401
    assert guarded.client.get(f"{PREFIX}/v1/models", headers=KEY).status_code == 200


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/health/ready", "/v1/models/adapter"])
def test_health_needs_no_key(guarded: HTTPServer, path: str) -> None:
    assert guarded.client.get(path).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_cors_headers_come_once_on_every_route(guarded: HTTPServer, path: str) -> None:
    ask = {"Origin": "https://here", "Access-Control-Request-Method": "POST"}
    assert guarded.client.options(path, headers=ask).status_code == 200
    response = guarded.client.post(path, json={}, headers={**KEY, "Origin": "https://here"})
    assert response.headers.get_list("access-control-allow-origin") == ["https://here"]
    other = guarded.client.post(path, json={}, headers={**KEY, "Origin": "https://there"})
    assert "access-control-allow-origin" not in other.headers


def test_too_many_and_too_large_headers(guarded: HTTPServer) -> None:
    for headers in ({f"X-{number}": "1" for number in range(30)}, {"X-Large": "x" * 5000}):
        assert guarded.client.get("/", headers=headers).status_code == 431


@pytest.mark.parametrize("path", [CHAT, TOKENIZE, "/v2/health/live"])
def test_request_ids_are_kept_made_and_never_break_a_line(guarded: HTTPServer, path: str) -> None:
    def answered(given: bytes | None) -> list[str]:
        headers = [(b"X-Request-Id", given)] if given is not None else []
        return guarded.client.get(path, headers=headers).headers.get_list("x-request-id")

    assert answered(b"mine-1") == ["mine-1"]
    made = answered(None), answered(b"a b"), answered(b"x" * 129), answered("é".encode())
    assert all(len(ids) == 1 and len(ids[0]) == 32 for ids in made)
    assert len({ids[0] for ids in made}) == 4


def test_one_request_more_than_allowed_is_told_to_come_again() -> None:
    with serving(concurrent_requests=2) as server, ThreadPoolExecutor() as pool:
        slow = server.model.chat = Slow()
        running = [pool.submit(server.client.post, CHAT, json=server.chat()) for _ in range(2)]
        for _ in running:
            assert slow.entered.acquire(timeout=10)
        for path in (CHAT, TOKENIZE):
            response = server.client.post(path, json=server.chat())
            assert response.status_code == 429
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["type"] == "RateLimitError"
        assert server.client.get("/v2/health/ready").status_code == 200
        slow.go_on.set()
        assert [future.result().status_code for future in running] == [200, 200]
        assert server.client.post(CHAT, json=server.chat()).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_a_client_that_goes_cancels_its_request(path: str) -> None:
    with serving() as server:
        slow = server.model.chat = Slow()
        body = b'{"model": "org/model", "messages": [], "prompt": "Hi"}'
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert slow.entered.acquire(timeout=10)
        assert slow.cancelled.wait(1)


@pytest.fixture(scope="module")
def impatient() -> Iterator[HTTPServer]:
    with serving(request_seconds=0.3) as server:
        yield server


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_a_request_that_takes_too_long_ends(impatient: HTTPServer, path: str) -> None:
    slow = impatient.model.chat = Slow()
    began = time.monotonic()
    response = impatient.client.post(path, json=impatient.chat())
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "TimeoutError"
    assert 0.3 <= time.monotonic() - began < 1
    assert slow.cancelled.wait(1)


def test_a_stream_that_takes_too_long_ends_with_an_error(impatient: HTTPServer) -> None:
    impatient.model.chat = stream_slowly
    began = time.monotonic()
    response = impatient.client.post(CHAT, json=impatient.chat(stream=True))
    assert response.status_code == 200
    events = response.text.split("\n\n")
    assert events[0] == "data: 0"
    assert "0.3 seconds" in events[-2]
    assert len(events) < 20
    assert time.monotonic() - began < 1.5
    until(lambda: impatient.lifecycle.active == 0)


def test_what_is_fast_enough_is_not_touched(impatient: HTTPServer) -> None:
    slow = impatient.model.chat = Slow()
    slow.go_on.set()
    for _ in range(3):
        response = impatient.client.post(CHAT, json=impatient.chat())
        assert response.json() == {"said": "done"}


def test_transfer_parameters_are_refused_on_every_route_while_something_is_offloaded() -> None:
    offloads = True
    with serving(offloads=lambda: offloads) as server:
        for path in (CHAT, TOKENIZE, f"{PREFIX}/v1/responses", f"{PREFIX}/inference/v1/generate"):
            body = server.chat(kv_transfer_params={"disagg_spec": {}})
            response = server.client.post(path, json=body)
            assert response.status_code == 400
            assert "kv_transfer_params is not accepted" in response.json()["error"]["message"]
        offloads = False
        assert server.client.post(CHAT, json=body).status_code == 200


def test_the_tenant_of_a_request_is_known_wherever_it_is_handled() -> None:
    async def tell(request: Any, raw_request: Any) -> Any:
        return {"tenant": TENANT.get()}

    async def tell_streaming(request: Any, raw_request: Any) -> Any:
        async def events() -> Any:
            yield TENANT.get()

        return events()

    with serving(tenant_header="X-Tenant-Id") as server:
        for handler in (tell, tell_streaming):
            server.model.chat = handler
            for tenant in ("one", "two"):
                headers = {"x-tenant-id": tenant}
                response = server.client.post(CHAT, json=server.chat(), headers=headers)
                assert tenant in response.text
            assert "one" not in server.client.post(CHAT, json=server.chat()).text


READINESS = ("/v2/health/ready", "/v2/models/adapter/ready", "/v1/models/adapter")


def test_while_it_leaves_it_answers_everybody_and_is_not_ready() -> None:
    with serving(api_keys=("right",)) as server:
        server.lifecycle.leave()
        for key, status in ((KEY, 200), ({}, 401)):
            response = server.client.post(CHAT, json=server.chat(), headers=key)
            assert (response.status_code, response.headers["connection"]) == (status, "close")
        for path in READINESS:
            response = server.client.get(path)
            assert (response.status_code, response.headers["connection"]) == (503, "close"), path
        assert server.client.get("/v2/health/live").status_code == 200


def test_while_it_drains_it_refuses_and_lives_and_is_not_ready() -> None:
    with serving() as server:
        server.lifecycle.drain()
        for path in (CHAT, TOKENIZE, f"/v1/models/{NAME}:predict"):
            response = server.client.post(path, json=server.chat())
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.headers["connection"] == "close"
        assert server.client.get("/v2/health/ready").status_code == 503
        assert server.client.get("/v2/health/live").status_code == 200
        server.lifecycle.fail("the engine has died")
        live = server.client.get("/v2/health/live")
        assert live.status_code == 503
        assert "the engine has died" in live.json()["error"]
