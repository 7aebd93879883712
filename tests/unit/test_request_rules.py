from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from starlette.datastructures import Headers

from kserve_lmcache.request_rules import isolate, refusal


def asked(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"cache_salt": None, "kv_transfer_params": None, **fields})


def salt(tenant: str | None, own: str | None, header: str | None = "X-Tenant-Id") -> str | None:
    request = asked(cache_salt=own)
    headers = Headers({"x-tenant-id": tenant} if tenant is not None else {})
    assert isolate(request, headers, header) == ""
    found: str | None = request.cache_salt
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"disagg_spec": {}}},
        {"kv_transfer_params": {"lmcache.tag.x": ["a"]}},
        {"kv_transfer_params": {}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
    ],
)
def test_transfer_parameters_are_refused(fields: dict[str, Any]) -> None:
    assert refusal(asked(**fields)).startswith("kv_transfer_params is not accepted")
    assert refusal(asked(vllm_xargs={"other": 1})) == ""


def test_without_a_tenant_and_a_salt_nothing_is_put_in() -> None:
    assert salt(None, None) is None
    assert salt("", None) is None
    assert salt("1", None, header=None) is None


def test_every_tenant_and_salt_and_both_are_apart() -> None:
    pairs = [
        ("1", None),
        ("2", None),
        (None, "1"),
        (None, "2"),
        ("1", "1"),
        ("1", "2"),
        ("12", "1"),
    ]
    found = [salt(*pair) for pair in pairs]
    assert len(set(found)) == len(pairs)
    assert found == [salt(*pair) for pair in pairs]


def test_a_client_cannot_name_the_salt_of_another_tenant() -> None:
    theirs = salt("1", None)
    assert salt("2", theirs) != theirs
    assert salt(None, theirs) != theirs


def test_any_salt_becomes_a_digest() -> None:
    for own in ("\0", "é\ud800", "@%/", "x" * 10**6):
        found = salt(None, own)
        assert found is not None
        assert len(found) == 64


def test_a_route_without_a_salt_is_refused_to_tenants() -> None:
    request = SimpleNamespace()
    headers = Headers({"X-Tenant-Id": "1"})
    assert "cannot be kept on this route" in isolate(request, headers, "X-Tenant-Id")
    assert isolate(request, headers, None) == ""
