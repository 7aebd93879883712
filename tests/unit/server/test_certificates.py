"""A certificate's files that change, and files that cannot be used."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

import pytest

from kserve_lmcache.server.certificates import refreshed
from tests.support.tls import Authority, Certificate

PERIOD = 0.01


class Context(ssl.SSLContext):
    """Counts how often a certificate was loaded."""

    loads = 0

    def load_cert_chain(self, certfile: object, keyfile: object = None) -> None:  # type: ignore[override]
        super().load_cert_chain(certfile, keyfile)  # type: ignore[arg-type]
        self.loads += 1


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Authority(tmp_path).issue("127.0.0.1")


async def until_loaded(context: Context, count: int) -> None:
    async with asyncio.timeout(10):
        while context.loads < count:
            await asyncio.sleep(PERIOD)


def test_unchanged_files_are_loaded_once(certificate: Certificate) -> None:
    async def run() -> int:
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        async with refreshed(context, certificate.cert_file, certificate.key_file, PERIOD):
            certificate.cert_file.touch()
            await asyncio.sleep(10 * PERIOD)
        return context.loads

    assert asyncio.run(run()) == 0


def test_a_half_that_does_not_fit_is_told_once_and_the_whole_is_used(
    certificate: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kserve_lmcache")

    async def run() -> None:
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert_file, certificate.key_file)
        renewed = Authority(tmp_path, "other").issue("127.0.0.1")
        async with refreshed(context, certificate.cert_file, certificate.key_file, PERIOD):
            await asyncio.sleep(10 * PERIOD)
            certificate.key_file.write_bytes(renewed.key_file.read_bytes())
            await asyncio.sleep(20 * PERIOD)
            assert context.loads == 1
            certificate.cert_file.unlink()
            await asyncio.sleep(10 * PERIOD)
            certificate.cert_file.write_bytes(renewed.cert_file.read_bytes())
            await until_loaded(context, 2)

    asyncio.run(run())
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "cannot be used" in message] == messages[:1]
    assert messages[1:] == [f"The certificate {certificate.cert_file} has changed and is in use"]
