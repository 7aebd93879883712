"""What a body may be, how long it may take, and that a slow one takes nobody's place."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kserve_lmcache.server.http.request_rules import refusal_of_encoding
from tests.support.http import CHAT, PREFIX, HTTPServer, serving

ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "latin-1")
PATHS = (CHAT, f"{PREFIX}/tokenize", f"{PREFIX}/v1/responses", f"{PREFIX}/inference/v1/generate")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with serving() as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_body_that_is_not_utf_8_is_refused(server: HTTPServer, path: str, encoding: str) -> None:
    body = json.dumps(server.chat("é", kv_transfer_params={"a": 1}), ensure_ascii=False)
    for headers in (JSON, {}, {"content-type": "text/plain"}):
        response = server.client.post(path, content=body.encode(encoding), headers=headers)
        assert response.status_code == 400
        assert "the body is not UTF-8" in response.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read(server: HTTPServer, encoding: str) -> None:
    body = json.dumps(server.chat("é漢"), ensure_ascii=False).encode(encoding)
    response = server.client.post(CHAT, content=body, headers=JSON)
    assert response.json() == {"said": "é漢"}
    hidden = json.dumps(server.chat(kv_transfer_params={"a": 1})).encode(encoding)
    assert server.client.post(CHAT, content=hidden, headers=JSON).status_code == 400


def test_a_form_may_hold_a_file() -> None:
    assert refusal_of_encoding(b"\0\xff", "multipart/form-data; boundary=x") == ""
    assert refusal_of_encoding(b"", "") == ""
    assert refusal_of_encoding(b"{\0}\0", "application/json") != ""


@contextmanager
def half_a_body(server: HTTPServer) -> Iterator[socket.socket]:
    """A client that has sent the start of its body."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"model": '.encode())
        connection.settimeout(20)
        yield connection


def test_clients_that_send_slowly_take_no_place_of_others() -> None:
    with serving(concurrent_requests=1) as server, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(half_a_body(server))
        time.sleep(0.3)
        assert server.lifecycle.active == 0
        assert server.client.post(CHAT, json=server.chat()).status_code == 200


def test_a_body_that_takes_too_long_is_given_up() -> None:
    with serving(body_seconds=0.4) as server, half_a_body(server) as connection:
        began = time.monotonic()
        answer = b"".join(iter(lambda: connection.recv(10_000), b"")).decode()
        assert 0.3 < time.monotonic() - began < 5
        assert answer.startswith("HTTP/1.1 408 ")
        assert "connection: close" in answer.lower()
        assert "The body took longer than 0.4 seconds" in answer
        assert server.client.post(CHAT, json=server.chat()).status_code == 200
