"""What clients send about the cache: a clear refusal or correct service, and the engine lives."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import models
from tests.support.metrics import samples
from tests.support.server import Server, engine_environment, long_prompt, running

SEED = 20
INPUTS = 1000
ADAPTERS = ("first", "second")
EVERY_LONG = 20  # one of so many is long enough to be cached
LAYERS = 4
# In bfloat16 a tie between two tokens may turn with the shape in which they are computed.
EXACT = "--dtype=float32"
# Of vLLM's own cache, room for little more than the longest prompt (6 KB a token).
SMALL_CACHE = "--kv-cache-memory-bytes=30M"


@dataclass(frozen=True)
class Identity:
    """Who asks: a tenant, for the model itself or an adapter."""

    tenant: str = ""
    adapter: str = ""

    def post(self, server: Server, prompt: str, **fields: Any) -> dict[str, Any]:
        body = chat(server, prompt, **fields)
        body["model"] = self.adapter or server.name
        headers = {"X-Tenant-Id": self.tenant} if self.tenant else {}
        url = f"{server.openai_url}/chat/completions"
        response = httpx.post(url, json=body, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


IDENTITIES = (
    Identity(),
    Identity(tenant="1"),
    Identity(tenant="2"),
    Identity(adapter="first"),
    Identity(adapter="second"),
)


@pytest.fixture(scope="module")
def server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    model = models.first_layers(root / "model", LAYERS)
    loras = [
        f"{name}={models.adapter(root / name, seed, source=model)}"
        for seed, name in enumerate(ADAPTERS)
    ]
    arguments = ("--tenant-header=X-Tenant-Id", "--enable-lora", "--lora-modules", *loras)
    with running(
        logs / "requests.log",
        EXACT,
        SMALL_CACHE,
        *arguments,
        environ=engine_environment(LMCACHE_MAX_LOCAL_CPU_SIZE="0.5"),
        model=(f"--model_id={model}",),
    ) as server:
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


def hits(server: Server) -> float:
    """Prompt tokens found so far, in vLLM's own cache and in LMCache."""
    found = samples(server.url)
    names = ("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total")
    return sum(found[name] for name in names)


SEVERAL: dict[str, dict[str, Any]] = {
    "n": {"n": 2, "temperature": 1.0, "seed": 0},
    "beam search": {"n": 2, "use_beam_search": True},
}


@pytest.mark.parametrize(
    ("several", "prompts"),
    [
        (SEVERAL["n"], 2),
        (SEVERAL["beam search"], 1),  # beams part after the first token
    ],
    ids=SEVERAL,
)
def test_several_answers_hit_their_own_alone(
    server: Server, several: dict[str, Any], prompts: int
) -> None:
    """vLLM makes requests of its own for them, which must say whose they are.

    Args:
        several: how more than one answer is asked for.
        prompts: requests that vLLM makes of the prompt as it is.
    """
    for number, owner in enumerate(IDENTITIES):
        by_several, plainly = (
            long_prompt(f"{chr(ord('a') + number)}{way}{prompts}", words=120) for way in "wr"
        )
        owner.post(server, by_several, max_tokens=3, **several)
        owner.post(server, plainly)
        for reader in (IDENTITIES[number - 1], owner):
            found = reader.post(server, by_several)["usage"]["prompt_tokens_details"]
            assert (found["cached_tokens"] >= 256) == (reader == owner), (owner, reader)
            before = hits(server)
            answer = reader.post(server, plainly, max_tokens=1, **several)
            assert len(answer["choices"]) == 2
            whole = (hits(server) - before) // 256
            # The first of two finds nothing that is not its own; the second finds the first's.
            assert whole == prompts if reader == owner else whole < prompts, (owner, reader)


@pytest.mark.parametrize("several", SEVERAL.values(), ids=SEVERAL)
def test_several_answers_are_the_same_when_their_prompt_is_loaded(
    server: Server, several: dict[str, Any]
) -> None:
    prompt = long_prompt(f"same{len(several)}", words=300)
    metric = "vllm:external_prefix_cache_hits_total"
    texts, loaded = [], []
    for tenant in ("computed", "loaded"):
        one = Identity(tenant)
        if tenant == "loaded":
            one.post(server, prompt)
            for filler in "xy":  # nothing else is left in vLLM's own cache
                Identity().post(server, long_prompt(f"{filler}{len(several)}", words=1200))
        before = samples(server.url)[metric]
        answer = one.post(server, prompt, max_tokens=6, **several)
        loaded.append(samples(server.url)[metric] - before)
        texts.append([choice["message"]["content"] for choice in answer["choices"]])
    assert loaded[0] == 0
    assert loaded[1] >= 512
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 2


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
