"""The head of a service on many nodes says what it waits for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.cli import await_nodes
from kserve_lmcache.cli.await_nodes import PATIENCE_SECONDS, explanation

ROOT = Path(__file__).resolve().parents[3]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _waited(after: float, count: int = 2) -> tuple[float, list[str]]:
    """How long it waits for a worker that joins after some seconds, and what it says meanwhile."""
    clock, said = Clock(), list[str]()
    await_nodes.await_nodes(
        count, lambda: 2 if clock() >= after else 1, said.append, clock, clock.sleep
    )
    return clock(), said


def test_it_goes_on_when_all_have_joined() -> None:
    assert _waited(after=0) == (0, [])
    assert _waited(after=100, count=1) == (0, [])
    seconds, said = _waited(after=30)
    assert (30 <= seconds < 35, said) == (True, [])


def test_it_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_SERVICE_NAME", "llama-405b")
    seconds, said = _waited(after=3 * PATIENCE_SECONDS + 1)
    assert seconds >= 3 * PATIENCE_SECONDS
    assert len(said) in (2, 3)
    assert set(said) == {explanation(1, 2, "llama-405b")}
    for part in ("1 of 2 nodes", "llama-405b-predictor-worker", "KServe 0.20", "kserve#6113"):
        assert part in said[0]


def test_the_reason_is_where_kubectl_describe_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setenv("TERMINATION_LOG", str(message))
    await_nodes._say("1 of 2 nodes")
    assert message.read_text() == "1 of 2 nodes"
    assert capsys.readouterr().out == "1 of 2 nodes\n"


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Stand-ins for the commands of the image, which write down how they are called."""
    for name in ("ray", "python3", "entrypoint.sh"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{tmp_path}/calls"\n')
        path.chmod(0o755)
    return tmp_path


def test_the_head_waits_before_the_server_starts(commands: Path) -> None:
    variables = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "POD_IP": "10.0.0.1",
        "RAY_NODE_COUNT": "2",
        "TENSOR_PARALLEL_SIZE": "8",
        "PIPELINE_PARALLEL_SIZE": "2",
    }
    script = ["sh", str(ROOT / "multinode.sh"), "head", "--model_name=a"]
    subprocess.run(script, env=variables, check=True)
    start, wait, serve = (commands / "calls").read_text().splitlines()
    assert start.startswith("ray start --head")
    assert wait == "python3 -m kserve_lmcache.cli.await_nodes 2"
    assert serve.startswith("entrypoint.sh ")
    assert serve.endswith("--pipeline-parallel-size=2 --model_name=a")


def test_no_engine_is_imported_for_it() -> None:
    code = "import sys, kserve_lmcache.cli.await_nodes\nprint({'vllm', 'torch'} & set(sys.modules))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout == "set()\n", done.stderr
