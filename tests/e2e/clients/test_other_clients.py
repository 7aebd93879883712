"""Clients that are not OpenAI's own."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import anthropic
import litellm
import pytest
from kserve import InferenceRESTClient, RESTConfig
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.e2e.clients.conftest import KEY, Clients


def test_anthropics_client(clients: Clients) -> None:
    client = anthropic.Anthropic(
        base_url=f"{clients.server.url}/openai", auth_token=KEY, max_retries=0
    )
    hello: Any = [{"role": "user", "content": "Hello!"}]
    with client:
        answer = client.messages.create(model=clients.name, messages=hello, max_tokens=8)
        assert (answer.type, answer.role, answer.stop_reason) == (
            "message",
            "assistant",
            "max_tokens",
        )
        assert answer.usage.output_tokens == 8
        counted = client.messages.count_tokens(model=clients.name, messages=hello)
        assert counted.input_tokens == answer.usage.input_tokens
        with client.messages.stream(model=clients.name, messages=hello, max_tokens=8) as stream:
            assert stream.get_final_message().content[0].type == "text"
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="nobody", messages=hello, max_tokens=8)


@tool
def capital(country: str) -> str:
    """The capital of a country."""
    return f"the capital of {country}"


def test_langchains_tool_loop(clients: Clients) -> None:
    model = ChatOpenAI(
        model=clients.name,
        base_url=clients.server.openai_url,
        api_key=KEY,  # type: ignore[arg-type]
        temperature=0,
        max_retries=0,
        max_completion_tokens=40,
    )
    messages: list[Any] = [HumanMessage("What is the capital of France?")]
    asked = model.bind(
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "capital",
                    "parameters": {
                        "type": "object",
                        "properties": {"country": {"enum": ["France", "Italy"]}},
                        "required": ["country"],
                    },
                },
            }
        ],
        tool_choice={"type": "function", "function": {"name": "capital"}},
    ).invoke(messages)
    (call,) = asked.tool_calls
    answer = ToolMessage(capital.invoke(call["args"]), tool_call_id=call["id"])
    final = model.bind_tools([capital]).invoke([*messages, asked, answer])
    assert isinstance(final.content, str)
    assert final.usage_metadata is not None
    assert "".join(str(chunk.content) for chunk in model.stream("Hello!"))


def test_litellm(clients: Clients) -> None:
    asked: dict[str, Any] = {
        "model": f"openai/{clients.name}",
        "api_base": clients.server.openai_url,
        "api_key": KEY,
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_tokens": 8,
        "num_retries": 0,
    }
    assert litellm.completion(**asked).usage.completion_tokens == 8
    assert sum(1 for _ in litellm.completion(**asked, stream=True)) > 1
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/nobody"})


def test_curl_as_in_kserves_guide(clients: Clients) -> None:
    body = {"model": clients.name, "messages": [{"role": "user", "content": "Hello!"}]}
    command = [
        *("curl", "--silent", "--fail", "--max-time", "60"),
        f"{clients.server.openai_url}/chat/completions",
        *("-H", "content-type: application/json", "-H", f"Authorization: Bearer {KEY}"),
        *("-d", json.dumps({**body, "max_tokens": 8})),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_kserves_own_client(clients: Clients, protocol: str) -> None:
    async def ask() -> None:
        client = InferenceRESTClient(RESTConfig(protocol=protocol, retries=0))
        url, name = clients.server.url, clients.name
        try:
            assert await client.is_server_live(url)
            assert await client.is_model_ready(url, name)
            if protocol == "v2":
                assert await client.is_server_ready(url)
        finally:
            await client.close()

    asyncio.run(ask())
    metadata = clients.http.get(f"/v2/models/{clients.name}").json()
    assert (metadata["name"], metadata["platform"]) == (clients.name, "vllm")
    assert clients.http.get("/v2").json()["name"] == "kserve"
