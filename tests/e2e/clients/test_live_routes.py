"""What only a live engine shows: cancelling, adapters, tenants on every route, limits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.clients.conftest import BODY_LIMIT, TENANT, Clients
from tests.support.metrics import samples
from tests.support.server import long_prompt

PREFIX = "/openai"


def messages(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def bodies(clients: Clients, prompt: str = "Hi") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every route that computes KV for the model, with a request for it."""
    named = {"model": clients.name}
    yield "/v1/chat/completions", {**named, "messages": messages(prompt), "max_tokens": 1}
    yield "/v1/completions", {**named, "prompt": prompt, "max_tokens": 1}
    yield "/v1/responses", {**named, "input": prompt, "max_output_tokens": 1}
    yield "/v1/messages", {**named, "messages": messages(prompt), "max_tokens": 1}
    yield "/v1/chat/completions/batch", {**named, "messages": [messages(prompt)], "max_tokens": 1}
    yield "/invocations", {**named, "messages": messages(prompt), "max_tokens": 1}
    yield (
        "/inference/v1/generate",
        {**named, "token_ids": [5] * 300, "sampling_params": {"max_tokens": 1}},
    )
    yield (
        "/generative_scoring",
        {**named, "query": prompt, "items": ["a"], "label_token_ids": [5, 6]},
    )


def test_while_the_engine_started_it_was_alive_and_not_ready(clients: Clients) -> None:
    assert clients.while_starting == {"live": 200, "ready": 503}
    for name in ("live", "ready"):
        assert httpx.get(f"{clients.server.url}/v2/health/{name}").status_code == 200


def test_every_route_answers_and_none_takes_transfer_parameters(clients: Clients) -> None:
    for path, body in bodies(clients):
        response = clients.http.post(PREFIX + path, json=body)
        assert response.status_code == 200, (path, response.text)
        for more in (
            {"kv_transfer_params": {"disagg_spec": {}}},
            {"vllm_xargs": {"kv_transfer_params": {}}},
        ):
            response = clients.http.post(PREFIX + path, json={**body, **more})
            assert response.status_code == 400, (path, response.text)
    assert clients.http.get("/v2/health/live").status_code == 200


def test_tenants_are_apart_on_every_route(clients: Clients) -> None:
    """What one tenant computed is found by itself, and not by the other one."""
    for number, (path, body) in enumerate(bodies(clients, long_prompt("apart", words=300))):
        tenants = [f"first-{number}", f"second-{number}"]

        def hits(tenant: str, path: str = path, body: Any = body) -> float:
            before = hit_tokens(clients)
            response = clients.http.post(PREFIX + path, json=body, headers={TENANT: tenant})
            assert response.status_code == 200
            # The counters are sent with the engine's next outputs.
            time.sleep(0.2)
            return hit_tokens(clients) - before

        assert hits(tenants[0]) == 0, path
        assert hits(tenants[1]) == 0, path
        assert hits(tenants[0]) > 0, path


def hit_tokens(clients: Clients) -> float:
    found = samples(clients.server.url)
    return found["vllm:prefix_cache_hits_total"] + found["vllm:external_prefix_cache_hits_total"]


def test_tokens_there_and_back(clients: Clients) -> None:
    for below in ("", "/v1"):
        url = f"{PREFIX}{below}"
        told = clients.http.post(
            f"{url}/tokenize", json={"model": clients.name, "prompt": "Hello there"}
        ).json()
        back = clients.http.post(
            f"{url}/detokenize", json={"model": clients.name, "tokens": told["tokens"]}
        ).json()
        assert back["prompt"] == "Hello there"
    assert clients.http.get(f"{PREFIX}/version").json()["version"]
    assert clients.http.get(f"{PREFIX}/health").status_code == 200
    for path in ("/sleep", "/collective_rpc", "/reset_prefix_cache", "/start_profile", "/load"):
        assert clients.http.post(PREFIX + path, json={}).status_code == 404, path


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_client_that_goes_away_ends_its_request(
    clients: Clients, path: str, stream: bool
) -> None:
    chat = path.endswith("chat/completions")
    body = {
        "model": clients.name,
        ("messages" if chat else "input"): messages("Tell me everything."),
        ("max_tokens" if chat else "max_output_tokens"): 900,
        "stream": stream,
        "temperature": 0,
        "ignore_eos": True,
    }

    def running() -> float:
        return samples(clients.server.url)["vllm:num_requests_running"]

    with httpx.Client(base_url=clients.http.base_url, headers=clients.http.headers) as short:
        assert running() == 0
        if stream:
            with short.stream("POST", PREFIX + path, json=body, timeout=60) as response:
                received = response.iter_bytes()
                next(received)
                assert response.status_code == 200
                clients.server.process.wait_until(lambda: running() == 1, seconds=10)
                assert b"[DONE]" not in next(received)
        else:
            with pytest.raises(httpx.ReadTimeout):
                short.post(PREFIX + path, json=body, timeout=httpx.Timeout(60, read=0.7))
    clients.server.process.wait_until(lambda: running() == 0, seconds=5)


def test_adapters_by_name_from_the_start_and_later(clients: Clients) -> None:
    def first_logprob(model: str) -> float:
        body = {"model": model, "messages": messages("Hello!"), "max_tokens": 1}
        body |= {"logprobs": True, "temperature": 0}
        response = clients.http.post(f"{PREFIX}/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["model"] == model
        return float(answer["choices"][0]["logprobs"]["content"][0]["logprob"])

    load = {"lora_name": "later", "lora_path": str(clients.adapter)}
    assert clients.http.post(f"{PREFIX}/v1/load_lora_adapter", json=load).status_code == 200
    assert len({first_logprob(model) for model in (clients.name, "static", "later")}) == 3
    listed = clients.http.get(f"{PREFIX}/v1/models").json()["data"]
    assert [card["id"] for card in listed] == [clients.name, "static", "later"]
    unload = {"lora_name": "later"}
    assert clients.http.post(f"{PREFIX}/v1/unload_lora_adapter", json=unload).status_code == 200
    body = {"model": "later", "messages": messages("Hello!")}
    assert clients.http.post(f"{PREFIX}/v1/chat/completions", json=body).status_code == 404


def test_a_large_body_and_bad_adapters_are_the_clients_mistakes(clients: Clients) -> None:
    body = {"model": clients.name, "prompt": "x" * BODY_LIMIT}
    assert clients.http.post(f"{PREFIX}/v1/completions", json=body).status_code == 413
    load = {"lora_name": "none", "lora_path": "/nowhere"}
    response = clients.http.post(f"{PREFIX}/v1/load_lora_adapter", json=load)
    assert 400 <= response.status_code < 500
    assert response.json()["error"]["message"]


def test_the_request_id_is_in_the_answer_and_in_vllms(clients: Clients) -> None:
    body = {"model": clients.name, "messages": messages("Hi"), "max_tokens": 1}
    response = clients.http.post(
        f"{PREFIX}/v1/chat/completions", json=body, headers={"X-Request-Id": "mine-7"}
    )
    assert response.headers["x-request-id"] == "mine-7"
    assert response.json()["id"] == "chatcmpl-mine-7"
