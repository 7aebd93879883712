"""The engine's client gives every request that vLLM makes the salt of its tenant."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient, DPAsyncMPClient, DPLBAsyncMPClient

from kserve_lmcache.engine import tenant
from kserve_lmcache.engine.client import TenantAsyncLLM, _TenantCore


class MockCore:
    """A stand-in for vLLM's client of the engine's process, which keeps what is sent."""

    resources = SimpleNamespace(engine_dead=False)

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def add_request_async(self, request: Any) -> None:
        self.sent.append((request.request_id, request.cache_salt))

    def shutdown(self, **_: Any) -> None:
        """vLLM's client ends with its last reference."""


def client(core: MockCore) -> Any:
    """A client without an engine: vLLM's own methods, and mocks of what they use."""
    made = TenantAsyncLLM.__new__(TenantAsyncLLM)
    made.engine_core = _TenantCore(core)
    for name in ("vllm_config", "output_processor", "input_processor", "observability_config"):
        setattr(made, name, MagicMock())
    made.vllm_config.cache_config.kv_sharing_fast_prefill = False
    made.input_processor.assign_request_id = lambda request: setattr(
        request, "external_req_id", request.request_id
    )
    made.output_handler = None
    made.logger_manager = None
    made.log_requests = False
    made._run_output_handler = lambda: None
    made.check_admission = lambda *_: None
    return made


def request(salt: str | None, **parameters: Any) -> Any:
    made = EngineCoreRequest(
        request_id="one",
        prompt_token_ids=[1, 2],
        mm_features=None,
        sampling_params=SamplingParams(**parameters),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=salt,
        data_parallel_rank=None,
    )
    return made


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("of", "own"), [("", None), ("a", None), ("", "s"), ("a", "s")])
def test_every_request_has_its_tenants_salt(count: int, of: str, own: str | None) -> None:
    core = MockCore()
    asked = request(own, n=count, temperature=1.0)

    async def ask() -> None:
        tenant.TENANT.set(of)
        await client(core).add_request("one", asked, asked.sampling_params)

    asyncio.run(ask())
    assert len(core.sent) == count
    assert {salt for _, salt in core.sent} == {tenant.salt(of, own)}


def test_what_else_vllm_uses_is_the_cores_own() -> None:
    core = MockCore()
    assert _TenantCore(core).resources is MockCore.resources


@pytest.mark.parametrize("kind", [AsyncMPClient, DPAsyncMPClient, DPLBAsyncMPClient])
def test_requests_reach_the_engine_by_one_call(kind: type) -> None:
    names = {name for name in dir(kind) if "request" in name and name.startswith("add")}
    assert names <= {"add_request", "add_request_async"}
