"""What a newcomer types: ``make serve``, then the line that it prints, then the guide's request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.processes import Process, wait_for_end
from tests.support.server import (
    MOST_LINES,
    ROOT,
    SMALL,
    START_SECONDS,
    Server,
    engine_environment,
)


@pytest.fixture(scope="module")
def server(logs: Path) -> Iterator[Server]:
    port = free_port()
    # The make that runs the tests leaves word to those below it.
    environ = {
        name: value
        for name, value in engine_environment().items()
        if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "-C", str(ROOT), "serve", f"PORT={port}", f"VENV={sys.prefix}"]
    process = Process([*command, f"ARGS={' '.join(SMALL)}"], logs / "make.log", environ)
    server = Server(port, "SmolLM2-135M-Instruct", process)
    try:
        process.wait_until(server.is_ready, START_SECONDS)
        yield server
    finally:
        family = process.family()
        process.stop()
        assert wait_for_end(family, seconds=30) == []


def test_the_line_that_it_prints_works(server: Server) -> None:
    log = server.process.output()
    (line,) = (line for line in log.splitlines() if "Ready. Try: " in line)
    command = line.partition("Ready. Try: ")[2]
    assert command.startswith(f"curl http://localhost:{server.port}/openai/v1/chat/completions ")
    result = subprocess.run(
        ["sh", "-c", f"{command} --silent --show-error"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["choices"][0]["message"]["content"].strip()


def test_the_log_of_a_start_fits_a_screen(server: Server) -> None:
    start = server.process.output().partition("Ready. Try: ")[0]
    lines = start.splitlines()
    assert len(lines) <= MOST_LINES, start
    assert not any("INFO" in line for line in lines if "LMCache INFO" in line or ".py:" in line)
    # Warnings of vLLM's are there, from the engine's process too.
    assert re.search(r"^\(Worker .*WARNING ", start, re.MULTILINE)


def test_a_request_is_one_line_and_a_probe_none(server: Server) -> None:
    before = len(server.process.output())
    for path in ("/", "/metrics", "/v2/health/ready", "/v2/health/live", "/openai/health"):
        assert httpx.get(f"{server.url}{path}").status_code == 200
    server.chat("Hello!")
    server.process.wait_until(lambda: "/chat/completions" in server.process.output()[before:], 10)
    lines = server.process.output()[before:].splitlines()
    assert [line for line in lines if "HTTP/1.1" in line] == [lines[-1]]


def test_answers_the_guides_request(server: Server) -> None:
    body = {
        "model": server.name,
        "messages": [
            {"role": "system", "content": "You are a helpful AI coding assistant."},
            {"role": "user", "content": "Write a segment tree implementation in python"},
        ],
        "max_tokens": 150,
    }
    response = httpx.post(f"{server.openai_url}/chat/completions", json=body, timeout=120)
    assert response.status_code == 200
    answer = response.json()
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_offloads_to_the_local_tier_by_default(server: Server) -> None:
    log = server.process.output()
    assert "KV-cache offloading is on: local CPU tier of " in log
    assert "(default: 15% of " in log
