"""``kserve-lmcache config`` and ``kserve-lmcache doctor``: what they print, and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.support.commands import run, run_here
from tests.support.models import MISTRAL, altered
from tests.support.server import MODEL

GUIDE = """\
local_cpu: true
chunk_size: 256
max_local_cpu_size: 2.0
remote_url: "redis://redis.default.svc.cluster.local:6379"
remote_serde: "naive"
"""


@pytest.fixture
def guide(tmp_path: Path) -> str:
    file = tmp_path / "lmcache_config.yaml"
    file.write_text(GUIDE)
    return str(file)


def test_config_prints_yaml_that_is_a_configuration(guide: str, tmp_path: Path) -> None:
    first = run_here("config", LMCACHE_CONFIG_FILE=guide, LMCACHE_CHUNK_SIZE="128")
    assert first.returncode == 0, first.stderr
    assert f"chunk_size: 256  # {guide}:2" in first.stdout.splitlines()
    assert first.stdout.startswith(f"# LMCACHE_CHUNK_SIZE is not used: {guide}:2 sets chunk_size")
    printed = tmp_path / "printed.yaml"
    printed.write_text(first.stdout)
    again = run_here("config", LMCACHE_CONFIG_FILE=str(printed))
    assert yaml.safe_load(again.stdout) == yaml.safe_load(first.stdout)


def test_config_as_json_of_a_model(guide: str) -> None:
    arguments = (f"--model_id={MODEL}", "--max-model-len=4096", "--lmcache", "chunk_size=128")
    result = run("config", "--json", *arguments, LMCACHE_CONFIG_FILE=guide)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    values, notes = json.loads(result.stdout).values()
    assert notes[1:] == [
        "vLLM was not asked, which --engine does: sizes that depend on the model are left out and "
        "--max-model-len is not checked"
    ]
    assert values["chunk_size"] == {"value": 128, "source": "--lmcache chunk_size"}
    assert values["max_local_cpu_size"] == {"value": 2.0, "source": f"{guide}:3"}


def test_sizes_that_depend_on_the_model_need_the_engine() -> None:
    flags = (f"--model_id={MODEL}", "--max-model-len=4096", "--lmcache", "chunk_size=128")
    without = json.loads(run_here("config", "--json", *flags).stdout)
    with_it = json.loads(run_here("config", "--engine", "--json", *flags).stdout)
    assert set(with_it["values"]) - set(without["values"]) == {"max_local_cpu_size"}
    assert without["values"].items() <= with_it["values"].items()
    assert "The KV of one token is " in with_it["notes"][-1]
    explained = run_here("config", "--explain", "max_local_cpu_size", *flags).stdout
    assert "value    depends on the model (--engine works it out)" in explained


def test_config_lists_every_mistake(guide: str) -> None:
    arguments = (f"--model_id={MODEL}", "--lmcache", "chunk_size=100", "remote_serde=kivi", "x=1")
    variables = {"LMCACHE_CONFIG_FILE": guide, "LMCACHE_LOCAL_CPUS": "1"}
    result = run_here("config", "--engine", *arguments, **variables)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "kserve-lmcache: error: 4 problems in the LMCache configuration:" in result.stderr
    assert "Traceback" not in result.stderr


def test_config_refuses_a_model_that_the_server_would_refuse(tmp_path: Path) -> None:
    model = altered(tmp_path / "model", **MISTRAL, sliding_window=1024)
    result = run_here("config", "--engine", f"--model_id={model}")
    assert (result.returncode, result.stdout) == (2, "")
    assert "sliding window" in result.stderr
    assert "Traceback" not in result.stderr
    without = run_here("config", "--engine", f"--model_id={model}", "--offload=off")
    assert without.returncode == 0
    assert "offload: false  # --offload" in without.stdout


def test_config_explains_a_key() -> None:
    result = run_here("config", "--explain", "chunk_size", LMCACHE_CHUNK_SIZE="512")
    assert result.stdout.splitlines() == [
        "chunk_size: Tokens of one chunk. A hit is a whole number of chunks.",
        "  value    512 (LMCACHE_CHUNK_SIZE)",
        "  type     int",
        "  default  256 (LMCache's)",
        "  variable LMCACHE_CHUNK_SIZE",
    ]
    assert run_here("config", "--explain", "chunk").returncode == 2


def test_doctor_says_what_is_wrong_and_how_to_fix_it(tmp_path: Path) -> None:
    result = run(
        "doctor",
        "--json",
        "--timeout=5",
        f"--model_id={MODEL}",
        LMCACHE_REMOTE_URL="redis://127.0.0.1:1",
        LMCACHE_MAX_LOCAL_CPU_SIZE="lots",
        PYTHONHASHSEED="random",
    )
    assert result.returncode == 1
    report = json.loads(result.stdout)
    statuses = {finding["name"]: finding["status"] for finding in report["findings"]}
    assert statuses["configuration"] == statuses["hash seed"] == "failure"
    assert statuses["remote connection"] == "failure"
    assert statuses["remote round trip"] == "skipped"
    assert statuses["versions"] == statuses["model"] == "ok"
    for finding in report["findings"]:
        assert finding["fix"] or finding["status"] in ("ok", "skipped")


def test_doctor_loads_the_connector_in_a_process_of_its_own() -> None:
    result = run("doctor", "--engine", f"--model_id={MODEL}")
    assert result.returncode == 0, result.stdout
    assert "loads, on " in result.stdout


def test_doctor_gives_up_the_connector_in_time() -> None:
    result = run("doctor", "--engine", "--timeout=2", f"--model_id={MODEL}")
    assert result.returncode == 1
    assert "did not load within 1.8 s" in result.stdout


def test_doctor_refuses_what_it_does_not_know() -> None:
    result = run("doctor", "--engine", "--nothing")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--nothing" in result.stderr


def test_kubernetes_is_told_what_the_preflight_found(tmp_path: Path) -> None:
    told = tmp_path / "termination-log"
    told.touch()
    url = "redis://:hunter2@127.0.0.1:1"
    variables = {"TERMINATION_LOG": str(told), "LMCACHE_REMOTE_URL": url}
    arguments = ("doctor", "--timeout=2", f"--model_id={MODEL}")
    failed = run(*arguments, LMCACHE_MAX_LOCAL_CPU_SIZE="lots", **variables)
    assert failed.returncode == 1
    configuration, connection = told.read_text().splitlines()
    assert configuration.startswith("configuration: LMCACHE_MAX_LOCAL_CPU_SIZE: ")
    assert connection.startswith("remote connection: 127.0.0.1:1 refuses the connection (")
    assert connection.endswith("only on the addresses of its bind setting.")
    assert "hunter2" not in told.read_text()
    refused = run("doctor", "--engine", "--nothing", **variables)
    assert refused.returncode == 2
    assert "--nothing" in told.read_text()
    told.write_text("before")
    healthy = run("doctor", f"--model_id={MODEL}", TERMINATION_LOG=str(told))
    assert healthy.returncode == 0, healthy.stdout
    assert told.read_text() == "before"


def test_kubernetes_is_told_why_the_server_ended(tmp_path: Path) -> None:
    told = tmp_path / "termination-log"
    run("--model_id=nowhere", "--no-such-flag", TERMINATION_LOG=str(told))
    assert not told.exists()  # nobody's file is made
    told.touch()
    result = run("--model_id=nowhere", "--no-such-flag", TERMINATION_LOG=str(told))
    assert result.returncode == 2
    assert "there is no flag --no-such-flag" in told.read_text()
    assert result.stderr.splitlines()[-1] == told.read_text()
    assert told.read_text().endswith(" (exit code 2)")
