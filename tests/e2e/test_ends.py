"""Whatever ends a server is one line in its log and in the termination log, and no traceback."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.processes import last_line
from tests.support.server import MODEL, START_SECONDS, engine_environment, start

CONNECTOR = '--kv-transfer-config={{"kv_connector":"{}","kv_role":"kv_both"}}'
DRAFT = f'{{"method":"draft_model","model":"{MODEL}","num_speculative_tokens":2}}'

# Flags, variables, the exit code, and what the line says.
ENDS: dict[str, tuple[list[str], dict[str, str], int, str]] = {
    "template": (["--chat-template=/none.jinja"], {}, 2, "vLLM refuses the arguments"),
    "tools alone": (["--enable-auto-tool-choice"], {}, 2, "requires --tool-call-parser"),
    "parser": (
        ["--enable-auto-tool-choice", "--tool-call-parser=hermez"],
        {},
        2,
        "did you mean hermes?",
    ),
    "prefix": ([], {"KSERVE_OPENAI_ROUTE_PREFIX": "/openai/"}, 2, "write /openai"),
    "metrics": ([], {"PROMETHEUS_MULTIPROC_DIR": "/proc/none"}, 1, "needed for metrics"),
    "former connector": ([CONNECTOR.format("LMCacheConnector")], {}, 2, "vLLM has no longer"),
    "connector beside others": (
        [
            '--kv-transfer-config={"kv_connector":"MultiConnector","kv_role":"kv_both",'
            '"kv_connector_extra_config":{"connectors":[{"kv_connector":"NixlConnector"},'
            '{"kv_connector":"LMCacheConnectorV1"}]}}'
        ],
        {},
        2,
        "LMCacheConnectorV1 among its connectors",
    ),
    "broken connector": (
        [
            '--kv-transfer-config={"kv_connector":"Theirs","kv_role":"kv_both",'
            '"kv_connector_module_path":"not_installed.connector"}'
        ],
        {},
        2,
        "Theirs, which vLLM cannot load",
    ),
    "no room": (["--kv-cache-memory-bytes=1M", "--offload=off"], {}, 1, "Lower --max-model-len"),
    "two mistakes": (
        [],
        {"LMCACHE_CHUNK_SIZE": "x", "LMCACHE_REMOTE_URL": "redis:1"},
        2,
        "2 problems in the LMCache configuration: ",
    ),
}


@pytest.mark.parametrize(("flags", "environ", "code", "says"), ENDS.values(), ids=ENDS)
def test_an_end_is_one_line(
    flags: list[str], environ: dict[str, str], code: int, says: str, tmp_path: Path
) -> None:
    told = tmp_path / "termination-log"
    told.touch()
    variables = engine_environment(TERMINATION_LOG=str(told), **environ)
    server = start(tmp_path / "log", *flags, environ=variables)
    assert server.process.wait(seconds=START_SECONDS) == code
    check(server.process.output(), last_line(server.process), told, code)
    assert says in told.read_text()


@pytest.mark.exhaustive
def test_a_draft_model_works_or_ends_in_one_line(tmp_path: Path) -> None:
    told = tmp_path / "termination-log"
    told.touch()
    variables = engine_environment(TERMINATION_LOG=str(told))
    server = start(tmp_path / "log", f"--speculative-config={DRAFT}", environ=variables)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.is_ready() and not told.read_text():
            assert time.monotonic() < deadline, server.process.tail()
            time.sleep(0.5)
        if server.is_ready():
            assert server.chat("Hello!").choices[0].message.content
        else:
            assert server.process.wait(seconds=20) == 1
            check(server.process.output(), last_line(server.process), told, 1)
    finally:
        server.process.stop()


def check(log: str, line: str, told: Path, code: int) -> None:
    assert "Traceback" not in log
    assert line.startswith("kserve-lmcache: error: ")
    assert line.endswith(f" (exit code {code})")
    assert line == told.read_text()
    assert "Failed core proc" not in line
