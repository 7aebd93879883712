"""What clients send about the cache: a clear refusal or correct service, and the engine lives."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server import Server, engine_environment, long_prompt, running

SEED = 20
INPUTS = 1000
EVERY_LONG = 20  # one of so many is long enough to be cached


@pytest.fixture(scope="module")
def server(logs: Path) -> Iterator[Server]:
    environ = engine_environment(LMCACHE_MAX_LOCAL_CPU_SIZE="0.5")
    with running(logs / "requests.log", "--tenant-header=X-Tenant-Id", environ=environ) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.openai_url, timeout=60) as client:
        yield client


def chat(server: Server, prompt: str = "Hi", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": server.name, "messages": messages, "max_tokens": 1, **fields}


@pytest.mark.parametrize(
    "parameters",
    [
        {"kv_transfer_params": {"disagg_spec": {}}},
        {"kv_transfer_params": {"lmcache.tag.x": ["a"]}},
        {"kv_transfer_params": {"lmcache.skip_save": True}},
        {"kv_transfer_params": {"ret_first_tok": True}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
    ],
)
def test_transfer_parameters_are_refused_on_every_route(
    server: Server, client: httpx.Client, parameters: dict[str, Any]
) -> None:
    completion = {"model": server.name, "prompt": "Hi", "max_tokens": 1}
    for path, body in (("/chat/completions", chat(server)), ("/completions", completion)):
        response = client.post(path, json={**body, **parameters})
        assert response.status_code == 400, response.text
        assert "kv_transfer_params is not accepted" in response.json()["error"]["message"]
        assert client.post(path, json=body).status_code == 200


def test_tenants_and_salts_hit_their_own_alone(server: Server, client: httpx.Client) -> None:
    prompt = long_prompt("tenants")
    asked: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {}),
        ({"X-Tenant-Id": "1"}, {}),
        ({"X-Tenant-Id": "2"}, {}),
        ({}, {"cache_salt": "1"}),
        ({"X-Tenant-Id": "1"}, {"cache_salt": "1"}),
    ]
    for expected in (0, 1024):
        for headers, fields in asked:
            body = chat(server, prompt, **fields)
            usage = client.post("/chat/completions", json=body, headers=headers).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] >= expected
            if not expected:
                assert usage["prompt_tokens_details"]["cached_tokens"] == 0, (headers, fields)


def any_text(chance: random.Random) -> str:
    kind = chance.randrange(6)
    if kind == 0:
        return "x" * chance.choice([1, 128, 129, 10**6])
    alphabet = ["@", "%", "/", "\\", "\0", "\n", "é", "漢", "\U0001f600", "a", " ", "\ud800", "%00"]
    return "".join(chance.choices(alphabet, k=chance.randrange(20)))


def any_json(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8 if depth < 3 else 6)
    if kind == 6:
        return [any_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    if kind == 7:
        names = ["disagg_spec", "lmcache.tag.x", "lmcache.tag.kserve", "ret_first_tok", ""]
        return {
            chance.choice([*names, any_text(chance)[:50]]): any_json(chance, depth + 1)
            for _ in range(chance.randrange(4))
        }
    return [None, True, -1, 1.5, any_text(chance), 2**63][kind]


def test_a_thousand_strange_values(server: Server, client: httpx.Client) -> None:
    chance = random.Random(SEED)
    prompt = long_prompt("strange", words=120)
    seen: set[str] = set()
    answers: dict[int, int] = {}
    for number in range(INPUTS):
        long = number % EVERY_LONG == 0
        fields: dict[str, Any] = {}
        headers = {}
        if not long and chance.random() < 0.4:
            fields["kv_transfer_params"] = any_json(chance)
        if not long and chance.random() < 0.1:
            fields["vllm_xargs"] = {"kv_transfer_params": any_json(chance)}
        if long or chance.random() < 0.5:
            fields["cache_salt"] = any_text(chance)
        if chance.random() < 0.3:
            tenant = any_text(chance)[:1000].encode("utf-8", "replace")
            headers["X-Tenant-Id"] = tenant.replace(b"\0", b"0").replace(b"\n", b"n").strip()
        body = json.dumps(chat(server, prompt if long else "Hi", **fields))
        response = client.post(
            "/chat/completions",
            content=body,
            headers={"content-type": "application/json", **headers},
        )
        status = response.status_code
        answers[status] = answers.get(status, 0) + 1
        assert status == 200 or 400 <= status < 500, (status, response.text, fields)
        if long and status == 200:
            identity = repr((headers.get("X-Tenant-Id") or b"", fields["cache_salt"]))
            cached = response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert (cached > 0) == (identity in seen), identity
            seen.add(identity)
    print(f"\nanswers by status: {answers}")
    assert answers[200] > 100
    assert answers[400] > 100
    assert server.chat("Hello!").choices[0].message.content
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
