"""The table of routes against vLLM's application and KServe's, whatever their versions have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from vllm.config import ProfilerConfig

from kserve_lmcache.cli.arguments import build_parser, parse_arguments
from kserve_lmcache.compat.vllm import build_app
from kserve_lmcache.config.settings import ROUTE_GROUPS
from kserve_lmcache.server.data_plane import Repository
from kserve_lmcache.server.http import routes, vllm_app
from tests.support.server import ROOT

# Together all that a model can be, with the model configuration that each needs.
TASKS = {"generate": ("generate",), "embed": ("embed",), "classify": ("classify",)}
ALL_TASKS = (*TASKS.values(), ("transcription", "realtime"))


class MockModelConfig:
    """What vLLM's factories ask of a pooling model's configuration."""

    hf_config = SimpleNamespace(num_labels=1)

    def get_pooling_task(self, tasks: tuple[str, ...]) -> str | None:
        return tasks[0] if tasks[0] in ("embed", "classify") else None


@pytest.fixture
def _all_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in routes.switches(ROUTE_GROUPS).items():
        monkeypatch.setenv(name, value)


def everything() -> Any:
    flags = ("--enable-tokenizer-info-endpoint", "--enable-fault-tolerance", "--enable-scale-out")
    known = build_parser()._option_string_actions  # not every version has each
    args = parse_arguments([flag for flag in flags if flag in known])
    args.profiler_config = ProfilerConfig(profiler="torch", torch_profiler_dir="profile")
    return args


def registered() -> set[str]:
    """The routes of the installed vLLM's application."""
    apps = (build_app(everything(), tasks, MockModelConfig()) for tasks in ALL_TASKS)
    return {name for app in apps for route in app.routes for name in routes.names(route)}


@pytest.mark.usefixtures("_all_switches")
def test_every_route_of_vllms_application_is_in_the_table() -> None:
    """The table may have more: the routes of other versions."""
    found = registered()
    assert found - set(routes.known(routes.VLLM)) == set()
    assert len(found) > 50


def test_every_route_of_kserves_application_is_in_the_table_and_no_other() -> None:
    repository = Repository()
    extension = ModelRepositoryExtension(repository)
    app = FastAPI(redoc_url=None)
    app.add_api_route("/", lambda: None)
    app.add_api_route("/metrics", lambda: None)
    register_v1_endpoints(app, DataPlane(repository), extension)
    register_v2_endpoints(app, DataPlane(repository), extension)
    found = {name for route in app.routes for name in routes.names(route)}
    assert found == set(routes.known(routes.KSERVE))


def served(*groups: str) -> Iterator[str]:
    for tasks in ALL_TASKS:
        app = vllm_app.build(everything(), groups, tasks, MockModelConfig())
        yield from (name for route in app.routes for name in routes.names(route))


@pytest.mark.usefixtures("_all_switches")
def test_what_is_off_is_not_served_though_vllm_has_it() -> None:
    found, there = set(served()), registered()
    rows = routes.known(routes.VLLM)
    for name, row in rows.items():
        if name not in there:
            continue
        assert (name in found) == (row.when == routes.ON), name
        method, _, path = name.partition(" ")
        assert (f"{method} /v1{path}" in found) == (row.also_v1 or f"{method} /v1{path}" in rows)


@pytest.mark.usefixtures("_all_switches")
@pytest.mark.parametrize("group", [group for group in ROUTE_GROUPS if group != "repository"])
def test_a_group_turns_its_own_routes_on_and_no_others(group: str) -> None:
    more = set(served(group)) - set(served())
    rows = routes.known(routes.VLLM)
    assert more == {name for name in registered() if rows[name].when == group}


def test_a_route_that_the_table_does_not_know_is_not_served() -> None:
    app = FastAPI()
    app.add_api_route("/v1/new", lambda: None)
    (name,) = routes.names(app.routes[-1])
    assert name not in routes.known(routes.VLLM)
    assert not routes.is_wanted(app.routes[-1], routes.VLLM, ROUTE_GROUPS)


def test_vllm_is_not_asked_for_what_nobody_wants() -> None:
    assert routes.switches(()) == {}
    assert routes.switches(("lora",)) == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    assert set(routes.switches(ROUTE_GROUPS)).isdisjoint(os.environ)


OTHER_PREFIX = """
import sys
from tests.support.http import NAME, serving
prefix = sys.argv[1]
with serving() as server:
    ask = server.client
    chat = ask.post(f"{prefix}/v1/chat/completions", json=server.chat("Hello"))
    assert chat.json() == {"said": "Hello"}, chat.text
    assert ask.post(f"{prefix}/tokenize", json={}).status_code == 400
    wrong = ask.post(f"{prefix}/v1/chat/completions", json={})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"], wrong.text
    unknown = ask.get(f"{prefix}/v1/models/nobody")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == 404, unknown.text
    listed = ask.get(f"{prefix}/v1/models").json()
    assert listed["data"][0]["id"] == NAME
    assert ask.get(f"{prefix}/v1/models/adapter").json()["id"] == "adapter"
    # KServe's protocols, at the root whatever the prefix is.
    assert ask.get("/v1/models").json()["models"] == [NAME]
    assert ask.get("/v1/models/adapter").json()["ready"] is True
    assert ask.get("/v2/health/ready").json() == {"ready": True}
    assert ask.get("/v2/models/adapter/ready").status_code == 200
    assert ask.post("/v1/models/adapter:predict", json={}).status_code == 501
    assert isinstance(ask.post("/v2/models/adapter/infer", json={}).json()["error"], str)
    assert ask.post("/v2/repository/models/adapter/unload").status_code == 404
    assert ask.get("/metrics").status_code != 404
print("good")
"""


@pytest.mark.parametrize("given", ["", "inner/deep"])
def test_any_prefix(given: str, tmp_path: Path) -> None:
    prefix = f"/{given}" if given and not given.startswith("/") else given
    environ = {
        **os.environ,
        "KSERVE_OPENAI_ROUTE_PREFIX": given,
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-c", OTHER_PREFIX, prefix],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert result.stdout.endswith("good\n"), result.stderr[-2000:]
