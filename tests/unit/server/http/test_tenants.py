"""The tenant of a request is the one that the gateway named, or nobody's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kserve_lmcache.engine.tenant import TENANT
from tests.support.http import CHAT, PREFIX, HTTPServer, serving

HEADER = "X-Tenant-Id"
TOKENIZE = f"{PREFIX}/tokenize"


async def tell(request: Any, raw_request: Any) -> Any:
    return {"tenant": TENANT.get()}


@pytest.fixture(scope="module")
def optional() -> Iterator[HTTPServer]:
    with serving(tenant_header=HEADER) as server:
        server.model.chat = tell
        yield server


@pytest.fixture(scope="module")
def required() -> Iterator[HTTPServer]:
    with serving(tenant_header=HEADER, tenant_required=True) as server:
        server.model.chat = tell
        yield server


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
@pytest.mark.parametrize("second", ["gateway", "client", ""])
def test_two_headers_are_refused(optional: HTTPServer, path: str, second: str) -> None:
    headers = [(HEADER, "client"), (HEADER.lower(), second)]
    response = optional.client.post(path, json=optional.chat(), headers=headers)
    assert response.status_code == 400
    assert "has the header X-Tenant-Id 2 times" in response.json()["error"]["message"]


def test_without_the_setting_the_header_may_be_absent(optional: HTTPServer) -> None:
    assert optional.client.post(CHAT, json=optional.chat()).json() == {"tenant": ""}
    named = optional.client.post(CHAT, json=optional.chat(), headers={HEADER: "a"})
    assert named.json() == {"tenant": "a"}


@pytest.mark.parametrize("name", ["café", "店", "tenant/1", "\xff"])
def test_a_tenants_name_is_text(optional: HTTPServer, name: str) -> None:
    headers = {HEADER.encode(): name.encode("utf-8")}
    answer = optional.client.post(CHAT, json=optional.chat(), headers=headers)
    assert answer.json() == {"tenant": name}


@pytest.mark.parametrize("path", [CHAT, TOKENIZE, f"{PREFIX}/v1/responses"])
@pytest.mark.parametrize("headers", [{}, {HEADER: ""}])
def test_a_request_without_a_tenant_is_refused_where_one_is_required(
    required: HTTPServer, path: str, headers: dict[str, str]
) -> None:
    response = required.client.post(path, json=required.chat(), headers=headers)
    assert response.status_code == 400
    assert "has no header X-Tenant-Id" in response.json()["error"]["message"]


def test_probes_need_no_tenant(required: HTTPServer) -> None:
    for path in ("/v2/health/ready", f"{PREFIX}/v1/models"):
        assert required.client.get(path).status_code == 200
    named = required.client.post(CHAT, json=required.chat(), headers={HEADER: "a"})
    assert named.json() == {"tenant": "a"}
