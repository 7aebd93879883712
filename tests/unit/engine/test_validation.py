"""What is refused before a model is loaded, by `serve`, `config` and `doctor` alike."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.cli import config, doctor
from kserve_lmcache.cli.arguments import build_parser, parse_arguments
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.engine.plan import plan_offload, resolve_configuration
from kserve_lmcache.engine.validation import check_arguments
from kserve_lmcache.errors import KServeLMCacheError, UsageError
from tests.support.server import MODEL

PLUGIN = """
from vllm.tool_parsers import ToolParser, ToolParserManager
@ToolParserManager.register_module("of-the-test")
class OfTheTest(ToolParser):
    pass
"""


def refusal(*argv: str, **environ: str) -> str:
    with pytest.raises(UsageError) as error:
        check_arguments(parse_arguments(["--model_id=a", *argv]), environ)
    return str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chat-template=/nonexistent.jinja"], "vLLM refuses the arguments: "),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice requires --tool-call-parser"),
        (
            ["--enable-auto-tool-choice", "--tool-call-parser=hermez"],
            "--tool-call-parser=hermez is no parser of vLLM's: did you mean hermes?",
        ),
        (["--reasoning-parser=nothing"], "--reasoning-parser=nothing is no parser of vLLM's"),
        (["--tool-parser-plugin=/nonexistent.py"], "--tool-parser-plugin=/nonexistent.py is no"),
        (["--ssl_certfile=/nonexistent", "--ssl_keyfile=/dev/null"], "/nonexistent is no file"),
        (["--ssl_keyfile=/etc/hostname"], "--ssl_keyfile has no effect without --ssl_certfile"),
        (["--log_config_file=/nonexistent"], "--log_config_file=/nonexistent is no file"),
        (
            ['--kv-transfer-config={"kv_connector":"Nothing","kv_role":"kv_both"}'],
            "--kv-transfer-config names Nothing, which vLLM cannot load",
        ),
        (["--load-format=tensorizer"], "needs the Python package tensorizer: install it"),
    ],
)
def test_arguments_that_vllm_or_the_machine_would_refuse_later(
    argv: list[str], message: str
) -> None:
    assert message in refusal(*argv)


@pytest.mark.parametrize(
    ("prefix", "fix"),
    [
        ("/openai/", "write /openai"),
        ("openai/", "write /openai"),
        ("/", "set KSERVE_OPENAI_ROUTE_PREFIX= for no prefix"),
        ("//a//b", "write /a/b"),
        ("/a?b", "set KSERVE_OPENAI_ROUTE_PREFIX= for no prefix"),
        ("/{model}/v", "write /v"),
        ("/a b", "set KSERVE_OPENAI_ROUTE_PREFIX= for no prefix"),
        ("http://h/openai", "write /h/openai"),
    ],
)
def test_a_prefix_that_is_none(prefix: str, fix: str) -> None:
    text = refusal(KSERVE_OPENAI_ROUTE_PREFIX=prefix)
    assert text == f"KSERVE_OPENAI_ROUTE_PREFIX={prefix!r} is no prefix of a path: {fix}"


@pytest.mark.parametrize("prefix", ["", "/openai", "inner/deep", "/a.b/c~d_e-f"])
def test_a_prefix(prefix: str) -> None:
    check_arguments(parse_arguments(["--model_id=a"]), {"KSERVE_OPENAI_ROUTE_PREFIX": prefix})


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("VLLM_SERVER_DEV_MODE", "1", "--enable-routes=reset-cache,sleep"),
        ("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "True", "--exit-on-engine-death=false"),
        ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "20", "--timeout_keep_alive"),
        ("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "true", "unset it"),
        ("VLLM_USE_RUST_FRONTEND", "1", "unset it"),
    ],
)
def test_variables_of_vllms_own_http_server(name: str, value: str, fix: str) -> None:
    text = refusal(**{name: value})
    assert text.startswith(f"{name} has no effect here: ")
    assert fix in text
    for off in ("", "0", "False"):
        check_arguments(parse_arguments(["--model_id=a"]), {name: off})


def test_every_mistake_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:8000")
    text = refusal("--chat-template=/a", "--reasoning-parser=b", VLLM_PORT="tcp://10.0.0.1:8000")
    assert text.count("; ") >= 2
    assert "vLLM cannot read VLLM_PORT: " in text
    assert "enableServiceLinks: false" in text


def test_a_plugin_with_a_parser_works_and_one_without_is_refused(tmp_path: Path) -> None:
    plugin, empty = tmp_path / "plugin_of_the_test.py", tmp_path / "empty_plugin.py"
    plugin.write_text(PLUGIN)
    empty.write_text("raise ImportError('no such thing')\n")
    flags = ["--enable-auto-tool-choice", "--tool-call-parser=of-the-test"]
    good = [f"--tool-parser-plugin={plugin}", *flags]
    check_arguments(parse_arguments(["--model_id=a", *good]), {})
    bad = [f"--tool-parser-plugin={empty}", "--enable-auto-tool-choice", "--tool-call-parser=x"]
    assert f"--tool-parser-plugin={empty} " in refusal(*bad)


# Inputs, and what each of the three commands says of them.
INPUTS: list[tuple[list[str], dict[str, str], str]] = [
    ([], {"LMCACHE_REMOTE_URL": "redis:6379"}, "does not begin with a scheme and ://"),
    ([], {"LMCACHE_REMOTE_URL": "redis://"}, "names no host"),
    ([], {"LMCACHE_REMOTE_URL": "unix:"}, "does not begin with a scheme and ://"),
    ([], {"LMCACHE_REMOTE_URL": "redis://h/cache"}, "names a database that is not a number"),
    ([], {"LMCACHE_REMOTE_URL": "redis-sentinel://h:26379"}, "names no service"),
    ([], {"LMCACHE_REMOTE_URL": "lm://h"}, "names no port"),
    ([], {"LMCACHE_LOCAL_DISK": "file://~/kv", "LMCACHE_MAX_LOCAL_DISK_SIZE": "1"}, "~/kv"),
    ([], {"LMCACHE_STORE_LOCATION": "RemoteBackend"}, "store_location"),
    (["--kv-offloading-size=1"], {}, "turns vLLM's own offloading on"),
    (
        ['--kv-transfer-config={"kv_connector":"LMCacheConnector","kv_role":"kv_both"}'],
        {},
        "which vLLM has no longer",
    ),
    (
        [
            '--kv-transfer-config={"kv_connector":"MultiConnector","kv_role":"kv_both",'
            '"kv_connector_extra_config":{"connectors":[{"kv_connector":"LMCacheConnectorV1"}]}}'
        ],
        {},
        "has LMCacheConnectorV1 among its connectors",
    ),
    (["--chat-template=/nonexistent.jinja"], {}, "vLLM refuses the arguments"),
    (["--load-format=dummy"], {}, "is loaded by --load-format=dummy"),
    ([], {"VLLM_PORT": "tcp://10.0.0.1:8000"}, "vLLM cannot read VLLM_PORT"),
]


ASKED_OF_VLLM = (
    "vLLM refuses the arguments",
    "is loaded by --load-format=dummy",
    "vLLM cannot read VLLM_PORT",
)


def plan(flags: list[str], environ: dict[str, str]) -> None:
    """As `serve` does up to the engine's start."""
    args = parse_arguments(flags)
    check_arguments(args, environ)
    configuration = resolve_configuration(args, environ)
    resolve_engine_arguments(args, environ)
    plan_offload(args, configuration, environ)


@pytest.mark.parametrize(("argv", "environ", "message"), INPUTS)
def test_the_three_commands_agree(
    argv: list[str], environ: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    flags = [f"--model_id={MODEL}", "--lmcache", "max_local_cpu_size=0.5", *argv]
    with pytest.raises(KServeLMCacheError) as of_config:
        config.run(["--engine", *flags])
    report, code = doctor.run(["--engine", "--json", "--timeout=1", *flags])
    failures = [
        f"{finding['evidence']} {finding['fix']}"
        for finding in json.loads(report)["findings"]
        if finding["status"] == "failure"
    ]
    with pytest.raises(KServeLMCacheError) as of_serve:
        plan(flags, dict(environ))
    assert message in str(of_config.value)
    assert message in str(of_serve.value)
    assert message in " ".join(failures)
    assert code == 1


@pytest.mark.parametrize(
    ("argv", "environ", "message"), [each for each in INPUTS if each[2] not in ASKED_OF_VLLM]
)
def test_what_vllm_is_not_asked_for_is_refused_without_it(
    argv: list[str], environ: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    flags = [f"--model_id={MODEL}", "--lmcache", "max_local_cpu_size=0.5", *argv]
    with pytest.raises(KServeLMCacheError) as of_config:
        config.run(flags)
    assert message in str(of_config.value)
    report, code = doctor.run(["--json", "--timeout=1", *flags])
    findings = json.loads(report)["findings"]
    assert message in " ".join(f"{each['evidence']} {each['fix']}" for each in findings)
    assert code == 1


def test_the_doctor_takes_every_flag_of_serve() -> None:
    own = {option for action in doctor.build_parser()._actions for option in action.option_strings}
    actions: list[Any] = build_parser()._actions
    of_serve = {option for action in actions for option in action.option_strings}
    assert own & of_serve == {"-h", "--help"}
    report, _ = doctor.run(
        [
            "--json",
            "--timeout=1",
            f"--model={MODEL}",
            "--max-model-len=512",
            "--tenant-header=X",
            "--lmcache",
            "max_local_cpu_size=0.5",
        ]
    )
    statuses = {finding["name"]: finding["status"] for finding in json.loads(report)["findings"]}
    assert statuses["configuration"] == "ok"


def test_the_streamer_reads_the_models_own_files() -> None:
    from kserve_lmcache.identity.engine import check_load_format

    config: Any = SimpleNamespace(load_config=SimpleNamespace(load_format="runai_streamer"))
    check_load_format(config)
