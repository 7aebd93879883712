"""The port while the engine starts, and its hand-over."""

from __future__ import annotations

import socket
import ssl
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest

from kserve_lmcache.errors import UsageError
from kserve_lmcache.server.start_up_responder import listen
from tests.support.ports import free_port
from tests.support.tls import Authority


def arguments(**others: Any) -> Namespace:
    defaults = {"host": "127.0.0.1", "http_port": free_port(), "ssl_certfile": None}
    return Namespace(**{**defaults, "ssl_keyfile": None, **others})


def test_it_is_alive_and_not_ready() -> None:
    args = arguments()
    with listen(args), httpx.Client(base_url=f"http://127.0.0.1:{args.http_port}") as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/").json() == {"status": "alive"}
        for path in ("/v2/health/ready", "/v2/models/m/ready", "/v1/models/m", "/metrics"):
            response = client.get(path)
            assert response.status_code == 503
            assert "the engine is starting" in response.json()["error"]
        response = client.post("/openai/v1/chat/completions", json={"model": "m"})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "10"
        assert response.json()["error"]["code"] == 503
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{args.http_port}")


def test_who_connects_after_the_hand_over_waits_for_the_next_owner() -> None:
    args = arguments()
    with listen(args) as starting:
        listener = starting.hand_over()
        with socket.create_connection(("127.0.0.1", args.http_port)) as client:
            client.sendall(b"Hello")
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(5) == b"Hello"


def test_a_client_that_says_nothing_keeps_nobody_waiting() -> None:
    args = arguments()
    with listen(args), socket.create_connection(("127.0.0.1", args.http_port)):
        url = f"http://127.0.0.1:{args.http_port}/v2/health/live"
        assert httpx.get(url, timeout=1).status_code == 200


def test_a_port_that_is_taken_and_a_certificate_that_is_none() -> None:
    args = arguments()
    with listen(args), pytest.raises(UsageError, match="cannot be opened"), listen(args):
        pass
    bad = arguments(ssl_certfile="/nowhere", ssl_keyfile="/nowhere")
    with pytest.raises(UsageError, match="cannot be opened"), listen(bad):
        pass


def test_with_a_certificate_it_is_encrypted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("127.0.0.1")
    args = arguments(ssl_certfile=certificate.cert_file, ssl_keyfile=certificate.key_file)
    trusting = ssl.create_default_context(cafile=str(authority.file))
    with listen(args), httpx.Client(verify=trusting) as client:
        url = f"https://127.0.0.1:{args.http_port}/v2/health/ready"
        assert client.get(url).status_code == 503
