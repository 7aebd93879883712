"""Names of models and adapters on a live server, as vLLM's own server takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import models
from tests.support.server import Server, engine_environment, long_prompt, running

# Of vLLM's own cache, room for little more than the longest prompt.
SMALL_CACHE = "--kv-cache-memory-bytes=10M"


@pytest.fixture(scope="module")
def adapters(cut_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of adapters, in which vLLM's resolver looks."""
    directory = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("found", "later")):
        config = models.adapter(directory / name, seed, source=cut_model) / "adapter_config.json"
        values = json.loads(config.read_text())
        config.write_text(json.dumps({**values, "base_model_name_or_path": str(cut_model)}))
    return directory


@pytest.fixture(scope="module")
def server(cut_model: Path, adapters: Path, logs: Path) -> Iterator[Server]:
    environ = engine_environment(
        VLLM_PLUGINS="lora_filesystem_resolver",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="True",
        VLLM_LORA_RESOLVER_CACHE_DIR=str(adapters),
        LMCACHE_MAX_LOCAL_CPU_SIZE="0.5",
    )
    flags = ("--enable-lora", "--max-loras=2", SMALL_CACHE, "--max-model-len=2048")
    model = (f"--model_id={cut_model}",)
    with running(logs / "names.log", *flags, environ=environ, model=model) as server:
        yield server


def chat(server: Server, prompt: str = "Hi", **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1, **fields}
    return httpx.post(f"{server.openai_url}/chat/completions", json=body, timeout=120)


def test_a_resolvers_adapter_answers_at_its_first_request(server: Server) -> None:
    assert chat(server, model="nobody").status_code == 404
    answer = chat(server, model="found")
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "found"


def test_the_routes_that_load_adapters_are_there(server: Server, adapters: Path) -> None:
    body = {"lora_name": "loaded", "lora_path": str(adapters / "later")}
    loaded = httpx.post(f"{server.openai_url}/load_lora_adapter", json=body, timeout=120)
    assert loaded.status_code == 200, loaded.text
    assert chat(server, model="loaded").status_code == 200


def test_the_adapter_is_part_of_the_keys_of_what_it_stores(server: Server) -> None:
    prompt = long_prompt("names", words=300)
    assert chat(server, prompt, model="found").status_code == 200
    for filler in "xyz":  # nothing else is left in vLLM's own cache
        chat(server, long_prompt(filler, words=450))
    for name, hits in (("later", False), (server.name, False), ("found", True)):
        usage = chat(server, prompt, model=name).json()["usage"]
        assert (usage["prompt_tokens_details"]["cached_tokens"] >= 256) == hits, name
    assert "Adapter found: content " in server.process.output()


def test_a_request_without_a_name_is_for_the_model(server: Server) -> None:
    assert chat(server).json()["model"] == server.name
