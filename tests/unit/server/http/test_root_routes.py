"""The routes below the prefix at the root as well, as ``vllm serve`` has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kserve_lmcache.server.http import routes
from kserve_lmcache.server.http.root_routes import below_prefix
from tests.support.http import NAME, PREFIX, HTTPServer, serving


@pytest.fixture(scope="module")
def server() -> Iterator[HTTPServer]:
    with serving(root_routes=True) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "moved"),
    [
        ("/health", "/openai/health"),
        ("/ping", "/openai/ping"),
        ("/version", "/openai/version"),
        ("/v1/chat/completions", "/openai/v1/chat/completions"),
        ("/v1/models", "/openai/v1/models"),
        ("/v1/models/org/model", "/openai/v1/models/org/model"),
        ("/v2/rerank", "/openai/v2/rerank"),
        ("/openai", "/openai"),
        ("/openai/health", "/openai/health"),
        ("/", "/"),
        ("/metrics", "/metrics"),
        ("/offload", "/offload"),
        ("/docs", "/docs"),
        ("/openapi.json", "/openapi.json"),
        ("/v1/models/model:predict", "/v1/models/model:predict"),
        ("/v2/health/ready", "/v2/health/ready"),
        ("/v2/models/model/infer", "/v2/models/model/infer"),
    ],
)
def test_where_a_path_is_served(path: str, moved: str) -> None:
    assert below_prefix(path, "/openai") == moved
    assert below_prefix(path, "") == path


def test_every_route_of_kserves_and_ours_stays_at_the_root() -> None:
    both = {"/v1/models", "/v1/models/{model_name}"}  # whose answer is that of both protocols
    for source in (routes.KSERVE, routes.OURS):
        for name in routes.known(source):
            path = name.partition(" ")[2]
            assert below_prefix(path, "/openai") == path or path in both, name


def test_every_route_of_vllms_is_reached_from_the_root() -> None:
    shared = {"/metrics", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
    for name in routes.known(routes.VLLM):
        path = name.partition(" ")[2]
        assert below_prefix(path, "/openai") == f"/openai{path}" or path in shared, name


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models"])
def test_both_places_answer_the_same(server: HTTPServer, path: str) -> None:
    at_root, below = server.client.get(path), server.client.get(PREFIX + path)
    assert (at_root.status_code, at_root.content) == (below.status_code, below.content)
    assert at_root.status_code != 404


def test_a_request_for_inference(server: HTTPServer) -> None:
    for prefix in ("", PREFIX):
        answer = server.client.post(f"{prefix}/v1/chat/completions", json=server.chat("Hi"))
        assert answer.json() == {"said": "Hi"}


def test_the_models_are_listed_in_both_protocols(server: HTTPServer) -> None:
    listed = server.client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [NAME, "adapter"]
    assert listed["models"] == [NAME]
    one = server.client.get(f"/v1/models/{NAME}").json()
    assert (one["id"], one["name"], one["ready"]) == (NAME, NAME, True)


def test_kserves_routes_are_as_they_were(server: HTTPServer) -> None:
    assert server.client.get("/v2/health/ready").status_code == 200
    assert server.client.get("/v2/models").json()["models"] == [NAME]
    assert server.client.post("/v1/models/nobody:predict", json={}).status_code == 404
    assert server.client.get("/metrics").status_code != 404


def test_an_error_at_the_root_has_openais_shape(server: HTTPServer) -> None:
    wrong = server.client.post("/v1/chat/completions", json={"model": NAME})
    missing = server.client.get("/nothing")
    for answer, status in ((wrong, 400), (missing, 404)):
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == status


def test_a_probe_at_the_root_needs_no_key() -> None:
    with serving(root_routes=True, api_keys=("secret",)) as server:
        assert server.client.get("/health").status_code != 401
        for path in ("/v1/models", "/tokenizer_info", "/offload"):
            assert server.client.get(path).status_code == 401, path
        answer = server.client.post("/v1/chat/completions", json=server.chat())
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "AuthenticationError"
        key = {"Authorization": "Bearer secret"}
        assert server.client.get("/v1/models", headers=key).status_code == 200


def test_without_the_setting_there_is_nothing_at_the_root() -> None:
    with serving() as server:
        assert server.client.get("/health").status_code == 404
        assert server.client.post("/v1/chat/completions", json=server.chat()).status_code == 404
        assert "data" not in server.client.get("/v1/models").json()
