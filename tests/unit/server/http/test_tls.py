"""A certificate that is renewed while the server runs."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

from cryptography import x509

from tests.support.http import CHAT, serving
from tests.support.tls import Authority, Certificate, mount
from tests.support.waiting import until


def serial(port: int) -> int:
    shown = ssl.get_server_certificate(("127.0.0.1", port))
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, renewed = authority.issue("127.0.0.1"), authority.issue("127.0.0.1")
    with serving(certificate=certificate) as server:
        assert server.client.post(CHAT, json=server.chat()).status_code == 200
        before = serial(server.port)
        shutil.copy(renewed.key_file, certificate.key_file)
        shutil.copy(renewed.cert_file, certificate.cert_file)
        until(lambda: serial(server.port) != before, seconds=20, pause=0.1)
        assert server.client.post(CHAT, json=server.chat()).status_code == 200


def test_a_renewed_secret_of_kubernetes_is_shown_without_a_restart(tmp_path: Path) -> None:
    authority, mounted = Authority(tmp_path), tmp_path / "tls"
    mounted.mkdir()
    mount(mounted, authority.issue("127.0.0.1"))
    files = Certificate(mounted / "tls.crt", mounted / "tls.key")
    with serving(certificate=files) as server:
        for _ in range(2):
            before = serial(server.port)
            mount(mounted, authority.issue("127.0.0.1"))
            until(lambda: serial(server.port) != before, seconds=20, pause=0.1)  # noqa: B023
            assert server.client.post(CHAT, json=server.chat()).status_code == 200
