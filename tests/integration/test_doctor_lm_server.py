"""The doctor before LMCache's own server, and before the other stores that LMCache has."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor import other_stores, store
from kserve_lmcache.doctor.check import Status
from kserve_lmcache.doctor.context import Context
from tests.support.doctor import find, look_at, statuses, unchecked_after
from tests.support.ports import free_port
from tests.support.proxy import proxy_before
from tests.support.stores import lm_server, silent_server


def test_lmcaches_server(tmp_path: Path) -> None:
    with lm_server(tmp_path) as (host, port):
        findings = look_at(Remote(f"lm://{host}:{port}", "the test"))
        assert statuses(findings) == dict.fromkeys(
            ("remote name", "remote connection", "remote server"), Status.OK
        )
        assert find(findings, "remote server").evidence.startswith(
            "LMCache's server answers lookups"
        )

        def damage(data: bytes) -> bytes:
            return struct.pack("i", 500) + data[4:]

        with proxy_before(host, port, change=damage) as proxy:
            server = find(look_at(Remote(f"lm://{host}:{proxy}", "the test")), "remote server")
    assert server.status is Status.FAILURE
    assert server.evidence == f"{host}:{proxy} does not answer as LMCache's server does"


def test_the_request_is_lmcaches_own() -> None:
    from lmcache.v1.protocol import ClientCommand, ClientMetaMessage, ServerMetaMessage

    request = other_stores.lookup_request()
    message = ClientMetaMessage.deserialize(request)
    assert message.command is ClientCommand.EXIST
    assert message.key.model_name == "doctor"
    assert message.serialize() == request
    assert other_stores.ANSWER.size == ServerMetaMessage.packlength()


def test_a_server_that_never_answers() -> None:
    start = time.monotonic()
    with silent_server() as (host, port):
        findings = look_at(Remote(f"lm://{host}:{port}", "the test"), timeout=2)
    assert time.monotonic() - start < 2.5
    server = find(findings, "remote server")
    assert server.status is Status.FAILURE
    assert server.evidence.endswith("accepts connections and does not answer within 0.6 s")
    assert "lmcache_server HOST PORT" in server.fix


def test_a_refused_connection() -> None:
    findings = look_at(Remote(f"lm://127.0.0.1:{free_port()}", "the test"))
    assert find(findings, "remote connection").evidence.endswith("refuses the connection")
    unchecked_after(findings, "remote connection")


def test_a_url_without_a_port() -> None:
    (address,) = look_at(Remote("lm://cache", "the test"))
    assert address.status is Status.FAILURE
    assert address.evidence == "remote_url names no port"
    assert address.fix == "Write lm://HOST:PORT. remote_url is set by the test."


@pytest.mark.parametrize(
    ("url", "module"), [("infinistore://127.0.0.1:1", "infinistore"), ("eic://x", "eic")]
)
def test_a_store_whose_package_is_missing(url: str, module: str) -> None:
    findings = look_at(Remote(url, "the test"))
    package = find(findings, "remote package")
    assert package.status is Status.FAILURE
    assert package.evidence == f"the Python package {module} is not installed"
    assert package.fix.startswith(f"Install {module}")
    assert find(findings, "remote store").status is Status.SKIPPED


def test_a_store_that_was_never_tried_is_called_so() -> None:
    never = "no data was ever moved to one by this runtime"
    for url, untried in (("infinistore://127.0.0.1:1", True), ("s3://bucket", False)):
        found = find(look_at(Remote(url, "the test")), "remote store")
        assert found.status is Status.SKIPPED
        assert (never in found.evidence) is untried


@pytest.mark.parametrize(
    ("there", "wanted", "status", "evidence"),
    [
        ((), "", Status.FAILURE, "there is no RDMA device (/sys/class/infiniband), without"),
        (("mlx5_2",), "", Status.FAILURE, "there is no RDMA device mlx5_0, but mlx5_2"),
        (("mlx5_2",), "?device=mlx5_2", Status.OK, "mlx5_2 is there"),
        (("mlx5_0", "mlx5_2"), "", Status.OK, "mlx5_0 is there"),
    ],
)
def test_the_device_of_infinistore(
    tmp_path: Path, there: tuple[str, ...], wanted: str, status: Status, evidence: str
) -> None:
    for name in there:
        (tmp_path / "sys/class/infiniband" / name).mkdir(parents=True)
    remote = Remote(f"infinistore://127.0.0.1:1{wanted}", "the test")
    findings = [*store.store(Context(remote=remote, root=tmp_path))]
    device = find(findings, "remote device")
    assert device.status is status
    assert device.evidence.startswith(evidence)


def test_a_directory(tmp_path: Path) -> None:
    findings = look_at(Remote(f"fs://localhost:0{tmp_path}", "the test"))
    assert find(findings, "remote package").evidence == "aiofiles is installed"
    directory = find(findings, "remote directory")
    assert directory.status is Status.OK
    assert directory.evidence.startswith(f"{tmp_path}, ")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_missing_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, reason in (("missing", "does not exist"), ("file", "is no directory")):
        path = tmp_path / name
        found = find(look_at(Remote(f"fs://h:0{tmp_path},{path}", "the test")), "remote directory")
        assert found.status is Status.FAILURE
        assert found.evidence == f"{path} {reason}"
        assert found.fix == "Mount the volume there, or create it."


def test_a_directory_that_cannot_be_written() -> None:
    # Not even root can make files there.
    found = find(look_at(Remote("fs://h:0/proc/self", "the test")), "remote directory")
    assert found.status is Status.FAILURE
    assert found.evidence.startswith("/proc/self cannot be written: ")
    assert "fsGroup" in found.fix


@pytest.mark.parametrize(
    ("url", "problem"),
    [("fs://h:0", "names no directory"), ("fs:///kv", "names no host")],
)
def test_no_directory_named(url: str, problem: str) -> None:
    found = find(look_at(Remote(url, "the test")), "remote address")
    assert found.status is Status.FAILURE
    assert found.evidence == f"remote_url {problem}"
