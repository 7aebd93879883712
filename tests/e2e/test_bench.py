"""``kserve-lmcache bench`` against the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bench import bench, lines, report
from tests.support.models import first_layers
from tests.support.server import MODEL, Server, engine_environment, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = first_layers(tmp_path_factory.mktemp("model") / "small", layers=3)
    environ = engine_environment(LMCACHE_MAX_LOCAL_CPU_SIZE="0.5")
    with running(logs / "bench.log", model=(f"--model_id={model}",), environ=environ) as server:
        yield server


def test_a_prompt_is_new_once_and_then_in_the_cache(server: Server, tmp_path: Path) -> None:
    result = bench(server.url, "--lengths", "300", "700", "--rounds=2", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path)
    assert len(requests) == 8
    # Prompts are token ids: they have the wanted length. So do answers.
    assert all(each["prompt_tokens"] == each["length"] for each in requests)
    assert {each["output_tokens"] for each in requests} == {8}
    for each in requests:
        # By whole blocks, which on a CPU have 128 tokens.
        known = 0 if each["kind"] == "cold" else each["length"] // 128 * 128
        assert (each["cached_tokens"] or 0) >= known, each
        assert each["kind"] != "cold" or not each["cached_tokens"]
    for row in report(tmp_path)["by_length"]:
        assert 0 < row["same replica"] < row["cold"]


def test_load_has_the_figures_of_vllm(server: Server, tmp_path: Path) -> None:
    flags = (
        f"--dataset-name random --input-len 200 --output-len 8 --num-prompts 6 --tokenizer {MODEL}"
    )
    result = bench(
        server.url, f"--load={flags}", "--concurrency=2", "--rounds=2", f"--output={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path)
    assert len(requests) == 12
    assert {each["output_tokens"] for each in requests} == {8}
    assert all(each["error"] is None and 0 < each["ttft"] < each["e2e"] for each in requests)
    (row,) = report(tmp_path)["load"]
    assert (row["completed"], row["failed"]) == (6, 0)
    # The number of tokens is the server's, for which vLLM's benchmark makes texts.
    assert all(180 <= each["prompt_tokens"] <= 220 for each in requests)
    assert min(e["ttft"] for e in requests) * 1000 <= row["median_ttft_ms"]
