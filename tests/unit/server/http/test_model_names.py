"""A name in a request means here what it means to vLLM's own server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.plugins.lora_resolvers.filesystem_resolver import FilesystemResolver

from tests.support.http import CHAT, NAME, HTTPServer, serving

BASE = "base-of-the-test"
LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
ANY_NAME = "VLLM_SKIP_MODEL_NAME_VALIDATION"


class MockEngineClient:
    """As much of an engine as vLLM's list of models uses."""

    model_config = SimpleNamespace(model=BASE, max_model_len=16)
    renderer = input_processor = None

    async def add_lora(self, request: Any) -> bool:
        if "broken" in request.lora_name:
            raise ValueError("no adapter of this model")
        return True


@pytest.fixture(scope="module")
def shared() -> Iterator[HTTPServer]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared: HTTPServer, tmp_path: Path) -> HTTPServer:
    """With vLLM's own list of models and its resolver, which finds adapters in a directory."""
    for name in ("found", "broken"):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": BASE}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    engine: Any = MockEngineClient()
    models = OpenAIServingModels(engine, [BaseModelPath(NAME, BASE)])
    models.lora_resolvers = [FilesystemResolver(str(tmp_path))]
    shared.model.openai_serving_models = models  # type: ignore[assignment]
    return shared


def status(server: HTTPServer, **fields: Any) -> int:
    body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    return server.client.post(CHAT, json=body).status_code


@pytest.mark.parametrize("fields", [{}, {"model": None}, {"model": ""}, {"model": NAME}])
def test_a_request_without_a_name_is_for_the_only_model(
    server: HTTPServer, fields: dict[str, Any]
) -> None:
    assert status(server, **fields) == 200


@pytest.mark.parametrize("value", ["1", "True", "true"])
def test_a_resolver_finds_an_adapter_at_its_first_request(
    server: HTTPServer, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(server, model="found") == 404
    monkeypatch.setenv(LORA, value)
    assert status(server, model="found") == 200
    assert "found" in server.model.openai_serving_models.lora_requests
    assert status(server, model="nobody") == 404
    assert status(server, model=NAME) == 200


def test_an_adapter_that_cannot_be_loaded_says_so(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LORA, "1")
    answer = server.client.post(CHAT, json=server.chat() | {"model": "broken"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", 400)
    assert "'broken' was found but could not be loaded" in error["message"]


def test_names_are_not_checked_where_vllm_would_not(
    server: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(server, model="nobody") == 404
    monkeypatch.setenv(ANY_NAME, "true")
    assert status(server, model="nobody") == 200
