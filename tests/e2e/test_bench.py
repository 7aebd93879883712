"""``kserve-lmcache bench`` against the real server."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bench import COMMAND, bench, figures, lines, reported
from tests.support.models import first_layers
from tests.support.server import Server, engine_environment, running
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = first_layers(tmp_path_factory.mktemp("model") / "small", layers=3)
    environ = engine_environment(LMCACHE_MAX_LOCAL_CPU_SIZE="0.5")
    with running(logs / "bench.log", model=(f"--model_id={model}",), environ=environ) as server:
        yield server


def test_the_figures_are_those_of_a_second_reading_of_the_log(
    server: Server, tmp_path: Path
) -> None:
    result = bench(
        server.url,
        "--workload=chat",
        "--groups=4",
        "--turns=3",
        "--requests=24",
        "--unique-tokens=200",
        "--output-tokens=8",
        "--concurrency=2",
        f"--output={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["results"]
    assert reported(row) == pytest.approx(figures(requests))
    assert (row["requests"], row["errors"]) == (24, 0)
    # Prompts are token ids, so they are as long as they were meant to be, and so are the answers.
    assert lines(tmp_path, "run")[0]["endpoints"][0]["prompts"] == "token ids"
    assert all(each["prompt_tokens"] == each["length"] for each in requests)
    assert {each["output_tokens"] for each in requests} == {8}
    # Histories come from a cache, and first messages do not.
    assert all(not each["cached_tokens"] for each in requests if each["turn"] == 0)
    # By whole blocks, which on a CPU have 128 tokens.
    assert all(each["cached_tokens"] >= 128 for each in requests if each["turn"] > 0)
    # What the server counts is what its answers say.
    (source,) = report["prompt_tokens_by_source"]
    assert source["shares"]["computed"] == pytest.approx(1 - row["hit_ratio"], abs=0.001)
    assert sum(source["shares"].values()) == pytest.approx(1)


def test_chat_and_whole_answers(server: Server, tmp_path: Path) -> None:
    for number, option in enumerate(("--api=chat", "--no-stream")):
        output = tmp_path / str(number)
        result = bench(
            server.url,
            "--workload=random",
            "--requests=4",
            "--unique-tokens=300",
            "--output-tokens=5",
            option,
            f"--output={output}",
        )
        assert result.returncode == 0, result.stderr
        requests = lines(output)
        assert {each["output_tokens"] for each in requests} == {5}
        # Words are counted by two probes: near enough, the chat's template added.
        assert all(300 <= each["prompt_tokens"] <= 380 for each in requests)
        assert all((each["ttft"] is None) == (option == "--no-stream") for each in requests)


def test_ctrl_c_keeps_what_was_measured(server: Server, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, server.url, "--requests=5000", "--rate=5", f"--output={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=engine_environment(),
    )
    log = tmp_path / "log.jsonl"
    until(lambda: log.exists() and log.read_text().count('"request"') >= 5, 60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    (row,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert row["requests"] == len(lines(tmp_path)) >= 5
    assert reported(row) == pytest.approx(figures(lines(tmp_path)))
