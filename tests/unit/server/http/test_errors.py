"""What each protocol's routes answer when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from kserve_lmcache.compat.vllm import ErrorInfo, ErrorResponse, exceptions
from tests.support.http import CHAT, NAME, PREFIX, HTTPServer, echo, serving

TOKENIZE = f"{PREFIX}/tokenize"


@pytest.fixture(scope="module")
def shared() -> Iterator[HTTPServer]:
    with serving(body_bytes=1000) as server:
        yield server


@pytest.fixture
def server(shared: HTTPServer) -> Iterator[HTTPServer]:
    yield shared
    shared.model.chat, shared.model.alive = echo, True


def openai_error(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return error


def raising(error: Exception) -> Any:
    async def handler(request: Any, raw_request: Any) -> Any:
        raise error

    return handler


def test_an_answer(server: HTTPServer) -> None:
    assert server.client.post(CHAT, json=server.chat("Hello")).json() == {"said": "Hello"}


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_malformed_json(server: HTTPServer, path: str) -> None:
    headers = {"content-type": "application/json"}
    for body in ("{", '{"model": }', ""):
        openai_error(server.client.post(path, content=body, headers=headers), 400)
    error = openai_error(server.client.post(path, content='{"a": 1,}', headers=headers), 400)
    assert "not valid JSON at character 8" in error["message"]


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_a_body_that_is_invalid_says_where_and_repeats_nothing(
    server: HTTPServer, path: str
) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "a secret"}], "top_p": "much"}
    body |= {"add_special_tokens": "much"}
    error = openai_error(server.client.post(path, json=body), 400)
    assert error["param"] in ("top_p", "prompt")  # a text is what tokenize asks for first
    assert "secret" not in error["message"]
    missing = openai_error(server.client.post(CHAT, json={"model": NAME}), 400)
    assert missing["param"] == "messages"


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
def test_a_body_over_the_limit(server: HTTPServer, path: str) -> None:
    error = openai_error(server.client.post(path, json=server.chat("x" * 1000)), 413)
    assert "1000 bytes" in error["message"]

    def parts() -> Iterator[bytes]:
        for _ in range(5):
            yield b"x" * 400

    openai_error(server.client.post(path, content=parts()), 413)
    response = server.client.post(f"/v1/models/{NAME}:predict", content=b"x" * 1001)
    assert (response.status_code, type(response.json()["error"])) == (413, str)


def test_an_unknown_model_and_an_unknown_route(server: HTTPServer) -> None:
    error = openai_error(server.client.post(CHAT, json={**server.chat(), "model": "nobody"}), 404)
    assert (error["type"], error["param"]) == ("NotFoundError", "model")
    openai_error(server.client.get(f"{PREFIX}/v1/models/nobody"), 404)
    openai_error(server.client.post(f"{PREFIX}/v1/nothing", json={}), 404)
    openai_error(server.client.get(CHAT), 405)


def test_models_are_listed_and_shown_one_by_one(server: HTTPServer) -> None:
    listed = server.client.get(f"{PREFIX}/v1/models").json()
    assert [card["id"] for card in listed["data"]] == [NAME, "adapter"]
    assert server.client.get(f"{PREFIX}/v1/models/{NAME}").json()["id"] == NAME


def test_an_adapter_that_came_later_is_a_model(server: HTTPServer) -> None:
    response = server.client.post(CHAT, json={**server.chat(), "model": "adapter"})
    assert response.status_code == 200


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("This model's maximum context length is 4 tokens, not 9"), 400),
        (OverflowError("too large"), 400),
        (NotImplementedError("not here"), 501),
        (EngineDeadError(), 503),
        (RuntimeError("a secret"), 500),
        # Of vLLM 0.32: a full queue, a request to send again, a profiler that runs.
        *((kind(), 503) for kind in exceptions("QueueOverflowError", "MaxQueuedTokensError")),
        *((kind(), 503) for kind in exceptions("RetryableRequestError")),
        *((kind(), 409) for kind in exceptions("ProfilerAlreadyActiveError")),
    ],
)
def test_what_vllm_raises(server: HTTPServer, path: str, error: Exception, status: int) -> None:
    server.model.chat = raising(error)
    response = server.client.post(path, json=server.chat())
    message = openai_error(response, status)["message"]
    assert "secret" not in message
    if status == 400:
        assert message == error.args[0]
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)


def test_what_vllm_returns(server: HTTPServer) -> None:
    async def handler(request: Any, raw_request: Any) -> Any:
        info = ErrorInfo(message="too long", type="BadRequestError", param="messages", code=400)
        return ErrorResponse(error=info)

    server.model.chat = handler
    error = openai_error(server.client.post(CHAT, json=server.chat()), 400)
    assert (error["message"], error["param"]) == ("too long", "messages")


@pytest.mark.parametrize("verb", [":predict", ":explain"])
def test_kserves_tensor_routes_say_where_to_go(server: HTTPServer, verb: str) -> None:
    server.model.name = "plain"
    for path in (f"/v1/models/plain{verb}", "/v2/models/plain/infer"):
        missing = server.client.post(path, json={"instances": [1]})
        assert missing.status_code == 404
        assert isinstance(missing.json()["error"], str)
    for path in (f"/v1/models/adapter{verb}", "/v2/models/adapter/versions/1/infer"):
        response = server.client.post(path, json={"instances": [1]})
        assert response.status_code == 501
        assert CHAT in response.json()["error"]


def test_kserves_routes_keep_their_shapes(server: HTTPServer) -> None:
    assert server.client.get("/v1/models").json() == {"models": [NAME]}
    assert server.client.get("/v1/models/nobody").json() == {
        "error": "Model with name nobody does not exist."
    }
    assert server.client.get("/v2/health/live").json() == {"live": True}
    server.model.alive = False
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/v2/models/adapter/ready"):
        response = server.client.get(path)
        assert response.status_code == 503, path
        assert isinstance(response.json()["error"], str)


def test_kserves_load_and_unload_are_not_there(server: HTTPServer) -> None:
    for verb in ("load", "unload"):
        response = server.client.post(f"/v2/repository/models/{NAME}/{verb}")
        assert response.status_code == 404
    assert server.client.get("/v2/health/ready").status_code == 200


def test_a_dangerous_route_is_there_when_its_group_is_turned_on() -> None:
    with serving("repository") as server:
        server.model.name = "plain"
        assert server.client.post("/v2/repository/models/nobody/unload").status_code == 404
        assert (
            "/v2/repository/models/{model_name}/unload" in server.client.get("/openapi.json").text
        )


def test_a_request_that_names_no_model_is_for_the_only_one(server: HTTPServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hello!"}]}
    answer = server.client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()) == (200, {"said": "Hello!"})
    other = server.client.post(CHAT, json={**body, "model": "another"})
    assert other.status_code == 404
