"""The engine's client gives every request that vLLM makes the salt of its tenant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient, DPAsyncMPClient, DPLBAsyncMPClient

from kserve_lmcache.engine import tenant
from kserve_lmcache.engine.adapters import Adapters
from kserve_lmcache.engine.client import TenantAsyncLLM, _TenantCore
from kserve_lmcache.identity.namespace import ADAPTER
from tests.support import models


class MockCore:
    """A stand-in for vLLM's client of the engine's process, which keeps what is sent."""

    resources = SimpleNamespace(engine_dead=False)

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.extra: list[Any] = []

    async def add_request_async(self, request: Any) -> None:
        self.sent.append((request.request_id, request.cache_salt))
        self.extra.append(request.sampling_params.extra_args)

    def shutdown(self, **_: Any) -> None:
        """vLLM's client ends with its last reference."""


def client(core: MockCore) -> Any:
    """A client without an engine: vLLM's own methods, and mocks of what they use."""
    made = TenantAsyncLLM.__new__(TenantAsyncLLM)
    made.engine_core = _TenantCore(core, Adapters())
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


def request(salt: str | None, lora: LoRARequest | None = None, **parameters: Any) -> Any:
    made = EngineCoreRequest(
        request_id="one",
        prompt_token_ids=[1, 2],
        mm_features=None,
        sampling_params=SamplingParams(**parameters),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=lora,
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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("said", [None, {ADAPTER: "chosen"}, {ADAPTER: "chosen", "other": 1}])
def test_every_request_names_the_content_of_its_adapter(
    count: int, said: dict[str, Any] | None, tmp_path: Path
) -> None:
    """And not what its client says."""
    lora = LoRARequest("first", 1, str(models.adapter(tmp_path / "first", 1)))
    others = {name: value for name, value in (said or {}).items() if name != ADAPTER}
    for adapter in (lora, None):
        core = MockCore()
        asked = request(None, adapter, n=count, temperature=1.0, extra_args=said)
        asyncio.run(client(core).add_request("one", asked, asked.sampling_params))
        content = asyncio.run(Adapters().content(lora))
        expected = {ADAPTER: content, **others} if adapter else others
        assert core.extra == [expected or None] * count


def test_an_adapter_is_examined_when_it_is_loaded(tmp_path: Path) -> None:
    lora = LoRARequest("first", 1, str(models.adapter(tmp_path / "first", 1)))
    made = client(MockCore())
    loaded: list[str | None] = []

    async def add(_: Any, request: Any) -> bool:
        loaded.append(known(made))
        return True

    def known(made: Any) -> str | None:
        found = made.engine_core.adapters._known.get((1, lora.lora_path))
        return found and found.content.digest

    with patch.object(AsyncLLM, "add_lora", add):
        assert asyncio.run(made.add_lora(lora))
    assert loaded == [asyncio.run(Adapters().content(lora))]


def test_what_else_vllm_uses_is_the_cores_own() -> None:
    core = MockCore()
    assert _TenantCore(core, Adapters()).resources is MockCore.resources


@pytest.mark.parametrize("kind", [AsyncMPClient, DPAsyncMPClient, DPLBAsyncMPClient])
def test_requests_reach_the_engine_by_one_call(kind: type) -> None:
    names = {name for name in dir(kind) if "request" in name and name.startswith("add")}
    assert names <= {"add_request", "add_request_async"}
