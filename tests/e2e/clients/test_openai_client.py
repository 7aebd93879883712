"""OpenAI's own Python client. The model knows nothing: what is asked for is the protocol."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.e2e.clients.conftest import KEY, LENGTH, Clients
from tests.support.server import long_prompt

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def chat(clients: Clients, **parameters: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": clients.name,
        "messages": HELLO,
        "max_tokens": 8,
        "temperature": 0,
    }
    return clients.openai.chat.completions.create(**{**defaults, **parameters})


def fits_the_schema(text: str) -> bool:
    value = json.loads(text)
    return set(value) == {"city", "warm"} and value["city"] in ("Paris", "Rome")


def test_an_answer_has_all_its_parts(clients: Clients) -> None:
    answer = chat(clients)
    assert (answer.object, answer.model) == ("chat.completion", clients.name)
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_stream_is_the_same_answer_with_usage_at_its_end(clients: Clients) -> None:
    whole = chat(clients)
    chunks = list(chat(clients, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_tools(clients: Clients) -> None:
    tools = [tool("weather"), tool("travel")]
    auto = chat(clients, tools=tools, tool_choice="auto")
    assert auto.choices[0].message.content
    named = chat(
        clients,
        tools=tools,
        tool_choice={"type": "function", "function": {"name": "travel"}},
        max_tokens=60,
    )
    (call,) = named.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "travel")
    assert call.id
    assert fits_the_schema(call.function.arguments)


def test_required_tools_and_the_answer_to_them(clients: Clients) -> None:
    told = clients.http.post("/openai/tokenize", json={"model": clients.name, "prompt": "]"})
    (end,) = told.json()["tokens"]
    tools = [tool("weather"), tool("travel")]
    calls = (
        chat(
            clients,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=True,
            max_tokens=100,
            # Ends the list where it may end, which the model cannot decide.
            logit_bias={str(end): 100},
        )
        .choices[0]
        .message.tool_calls
    )
    assert calls
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.function.name in ("weather", "travel")
        assert fits_the_schema(call.function.arguments)
    again = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call.model_dump() for call in calls]},
        *({"role": "tool", "tool_call_id": call.id, "content": "warm"} for call in calls),
    ]
    assert chat(clients, messages=again, tools=tools).choices[0].finish_reason


def test_a_streamed_tool_call_is_put_together(clients: Clients) -> None:
    stream = chat(
        clients,
        tools=[tool("travel")],
        tool_choice={"type": "function", "function": {"name": "travel"}},
        max_tokens=60,
        stream=True,
    )
    name, arguments = "", ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            name = call.function.name or name
            arguments += call.function.arguments or ""
    assert name == "travel"
    assert fits_the_schema(arguments)


def test_an_answer_of_a_schema(clients: Clients) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    answer = chat(clients, response_format=form, max_tokens=60)
    assert fits_the_schema(answer.choices[0].message.content)


def test_logprobs_of_the_tokens(clients: Clients) -> None:
    answer = chat(clients, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 8
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0


def test_several_choices_a_seed_and_a_bias(clients: Clients) -> None:
    sampled = {"n": 3, "temperature": 1.5, "seed": 7}
    first, again = chat(clients, **sampled), chat(clients, **sampled)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    biased = chat(clients, logit_bias={"100": 100}, logprobs=True)
    assert len({token.token for token in biased.choices[0].logprobs.content}) == 1


def test_stop_ends_before_its_text(clients: Clients) -> None:
    text = chat(clients, max_tokens=16).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    stopped = chat(clients, max_tokens=16, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == text[: text.index(stop)]


def test_completions(clients: Clients) -> None:
    answer = clients.openai.completions.create(
        model=clients.name, prompt=["One", "Two"], max_tokens=4, temperature=0, echo=True
    )
    assert answer.object == "text_completion"
    assert [choice.text[:3] for choice in answer.choices] == ["One", "Two"]


def test_responses_and_their_retrieval(clients: Clients) -> None:
    answer = clients.openai.responses.create(
        model=clients.name, input="Hello!", max_output_tokens=8, store=True
    )
    assert answer.id.startswith("resp_")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8
    assert clients.openai.responses.retrieve(answer.id).id == answer.id
    events = [
        event.type
        for event in clients.openai.responses.create(
            model=clients.name, input="Hello!", max_output_tokens=8, stream=True
        )
    ]
    assert events[0] == "response.created"
    assert events[-1] in ("response.completed", "response.incomplete")


def test_the_models(clients: Clients) -> None:
    assert [model.id for model in clients.openai.models.list()] == [clients.name, "static"]
    assert clients.openai.models.retrieve(clients.name).id == clients.name
    with pytest.raises(openai.NotFoundError):
        clients.openai.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("parameters", "kind", "says"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "nobody"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"top_logprobs": 3}, openai.BadRequestError, "logprobs"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "function"),
        ({"max_tokens": 100_000}, openai.BadRequestError, str(LENGTH)),
        ({"extra_body": {"kv_transfer_params": {}}}, openai.BadRequestError, "kv_transfer_params"),
    ],
)
def test_errors_are_the_clients_own(
    clients: Clients, parameters: Any, kind: type[openai.APIStatusError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        chat(clients, **parameters)
    assert says in str(caught.value.body)
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_too_long_says_how_long_and_how_much_may_be(clients: Clients) -> None:
    messages = [{"role": "user", "content": long_prompt("long", words=4000)}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(clients, messages=messages, stream=stream)
        assert str(LENGTH) in caught.value.message
        assert len([word for word in caught.value.message.split() if word.isdigit()]) > 1


def test_without_the_key(clients: Clients) -> None:
    wrong = openai.OpenAI(base_url=clients.server.openai_url, api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_sixty_four_at_once(clients: Clients) -> None:
    async def all_of_them() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=clients.server.openai_url, api_key=KEY, max_retries=0
        ) as client:
            asked = [
                client.chat.completions.create(
                    model=clients.name,
                    messages=[{"role": "user", "content": f"Number {number}"}],
                    max_tokens=4,
                    temperature=0,
                )
                for number in range(64)
            ]
            return await asyncio.gather(*asked)

    answers = asyncio.run(all_of_them())
    assert len({answer.id for answer in answers}) == 64
