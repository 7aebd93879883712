"""The port while the engine starts, and its hand-over."""

from __future__ import annotations

import errno
import socket
import ssl
from argparse import Namespace
from pathlib import Path
from typing import Any

import httpx
import pytest

from kserve_lmcache.errors import UsageError
from kserve_lmcache.server.start_up_responder import listen
from tests.support.http import serving
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
        (listener,) = starting.hand_over()
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


@pytest.mark.parametrize("host", [None, "", "::"])
def test_it_answers_on_ipv4_and_on_ipv6(host: str | None) -> None:
    args = arguments(host=host)
    with listen(args) as starting:
        for address in ("127.0.0.1", "[::1]"):
            url = f"http://{address}:{args.http_port}/v2/health/live"
            assert httpx.get(url).json() == {"live": True}
        assert {each.family for each in starting.hand_over()} == {
            socket.AF_INET,
            socket.AF_INET6,
        }


@pytest.mark.parametrize(("host", "other"), [("0.0.0.0", "::1"), ("::1", "127.0.0.1")])  # noqa: S104
def test_an_address_that_is_named_is_the_only_one(host: str, other: str) -> None:
    args = arguments(host=host)
    with listen(args), pytest.raises(OSError, match="refused"):
        socket.create_connection((other, args.http_port))


@pytest.mark.parametrize("lacking", [socket.AF_INET, socket.AF_INET6])
def test_a_machine_of_one_kind_of_addresses(
    lacking: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = socket.create_server

    def create_server(address: Any, *, family: Any, **others: Any) -> socket.socket:
        if family == lacking:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(address, family=family, **others)

    monkeypatch.setattr(socket, "create_server", create_server)
    args = arguments(host=None)
    with listen(args) as starting:
        (listener,) = starting.listeners
        assert listener.family != lacking


def test_a_port_that_is_taken_on_ipv6_alone_is_taken() -> None:
    args = arguments(host=None)
    with (
        socket.create_server(("::", args.http_port), family=socket.AF_INET6),
        pytest.raises(UsageError, match=r"port .* of any address cannot be opened"),
        listen(args),
    ):
        pass
    socket.create_server(("127.0.0.1", args.http_port)).close()  # that of IPv4 is closed again


def test_the_server_answers_where_the_responder_did() -> None:
    """After the hand-over, on every socket of it."""
    args = arguments(host=None)
    with listen(args) as starting, serving(responder=starting) as server:
        for address in ("127.0.0.1", "[::1]"):
            url = f"http://{address}:{args.http_port}/v2/health/ready"
            assert httpx.get(url).status_code == 200
        assert server.port == args.http_port
