"""``kserve-lmcache bench`` against a scripted endpoint, whose times are known beforehand."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import redis

from kserve_lmcache.bench.client import parse
from kserve_lmcache.bench.load import Load
from kserve_lmcache.bench.own import Servers
from kserve_lmcache.bench.records import BenchmarkError
from kserve_lmcache.errors import UsageError
from tests.support.bench import COMMAND, bench, lines, report
from tests.support.openai_server import Script, serving
from tests.support.server import MODEL, ROOT, engine_environment
from tests.support.stores import redis_process
from tests.support.stores.binaries import redis_binary
from tests.support.waiting import until

STAND_IN = ROOT / "tests" / "support" / "stand_in_replica"
PNG = b"\x89PNG\r\n\x1a\n"
SWEEP = ("--lengths", "64", "128", "--rounds=3", "--pause=0")
# The scripted endpoint has no tokenizer.
LOAD = f"--dataset-name random --input-len 64 --num-prompts 4 --tokenizer={MODEL}"


def test_a_sweep_has_the_times_of_the_endpoint(tmp_path: Path) -> None:
    script = Script(first=0.05, between=0.01)
    with serving(script) as (url,):
        result = bench(url, *SWEEP, "--output-tokens=6", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path)
    assert Counter((each["kind"], each["length"]) for each in requests) == {
        (kind, length): 3 for kind in ("cold", "same replica") for length in (64, 128)
    }
    # A busy machine makes the endpoint slower, and never faster.
    assert all(0.05 <= each["ttft"] < 0.3 for each in requests)
    assert all(0.1 <= each["e2e"] < 0.6 for each in requests)
    assert all(each["prompt_tokens"] == each["length"] for each in requests)
    assert {each["output_tokens"] for each in requests} == {6}
    for each in requests:
        assert each["cached_tokens"] == (0 if each["kind"] == "cold" else each["length"] - 1)
    rows = report(tmp_path)["by_length"]
    for row in rows:
        times = [e["ttft"] for e in requests if (e["kind"], e["length"]) == ("cold", row["tokens"])]
        assert row["cold"] == pytest.approx(1000 * sorted(times)[1])
    # The table says the same.
    assert re.search(rf"64 +{rows[0]['cold']:.3g}", result.stdout), result.stdout
    assert (tmp_path / "ttft_by_length_1.png").read_bytes().startswith(PNG)


def test_a_report_from_the_log_is_the_one_of_the_run(tmp_path: Path) -> None:
    with serving(Script(first=0.01, between=0.002)) as (url,):
        run = bench(url, *SWEEP, f"--output={tmp_path / 'run'}")
    again = bench("report", str(tmp_path / "run" / "log.jsonl"), f"--output={tmp_path / 'again'}")
    assert (run.returncode, again.returncode) == (0, 0), run.stderr + again.stderr
    assert again.stdout == run.stdout
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {"report.json", "ttft_by_length_1.png"}
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_endpoints_take_turns_and_the_slower_one_is_found(tmp_path: Path) -> None:
    with serving(Script(first=0.02), Script(first=0.04)) as (fast, slow):
        pair = ("--compare", f"fast={fast}", f"slow={slow}")
        result = bench(*pair, "--lengths=64", "--rounds=25", "--pause=0.01", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    for row in report(tmp_path)["ratios"]:
        assert (row["endpoint"], row["reference"]) == ("slow", "fast")
        assert row["low"] <= row["ratio"] <= row["high"]
        assert 1.3 < row["ratio"] < 2.2
        assert (row["pairs"], row["verdict"]) == (25, "higher")
    # Never were both under way, and no endpoint had three requests without one to the other.
    requests = lines(tmp_path)
    assert all(a["started"] + a["e2e"] <= b["started"] for a, b in pairwise(requests))
    order = "".join(each["endpoint"][0] for each in requests)
    assert "fff" not in order
    assert "sss" not in order


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_load_is_the_one_of_vllms_benchmark(tmp_path: Path, backend: str) -> None:
    one, other = Script(first=0.02, between=0.005), Script(first=0.1, between=0.005)
    with serving(one, other) as (fast, slow):
        result = bench(
            *("--compare", f"fast={fast}", f"slow={slow},{slow}"),
            *("--concurrency", "1", "4", "--rounds=3", "--pause=0", "--seed=5"),
            f"--load={LOAD} --output-len 5 --backend {backend} --goodput ttft:60",
            f"--output={tmp_path}",
        )
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path)
    # Three turns of four requests, of each endpoint at each concurrency.
    assert set(Counter((each["endpoint"], each["phase"]) for each in requests).values()) == {12}
    assert {each["index"] for each in requests} == set(range(12))
    assert {each["replica"] for each in requests if each["endpoint"] == "slow"} == {0, 1}
    assert {each["output_tokens"] for each in requests} == {5}
    assert all(each["ttft"] >= 0.1 for each in requests if each["endpoint"] == "slow")
    assert other.together == 4
    # The endpoints got equal prompts, of which no turn and no phase repeats one.
    prompts = [[str(b.get("prompt") or b["messages"]) for b in s.bodies[2:]] for s in (one, other)]
    measured = [set(each[-24:]) for each in prompts]
    assert measured[0] == measured[1]
    assert len(measured[0]) == 24
    found = report(tmp_path)
    figures = {(row["endpoint"], row["phase"]): row for row in found["load"]}
    assert figures["fast", "concurrency 1"]["failed"] == 0
    assert figures["slow", "concurrency 1"]["median_ttft_ms"] >= 100
    assert figures["slow", "concurrency 1"]["request_goodput"] == 0
    assert figures["fast", "concurrency 1"]["request_goodput"] > 0
    ratios = {(row["phase"], row["figure"]): row for row in found["ratios"]}
    assert ratios["concurrency 1", "TTFT p50"]["verdict"] == "higher"
    assert ratios["concurrency 1", "requests/s"]["verdict"] == "cannot tell: too few requests"
    assert "figures of vllm bench serve" in result.stdout
    assert "Serving Benchmark Result" in (tmp_path / "vllm.log").read_text()


def test_requests_at_a_rate_do_not_wait_for_answers(tmp_path: Path) -> None:
    script = Script(first=4.0)
    with serving(script) as (url,):
        result = bench(
            url, "--rounds=1", f"--load={LOAD} --request-rate 40", f"--output={tmp_path}"
        )
    assert result.returncode == 0, result.stderr
    assert script.together == 4
    assert {each["phase"] for each in lines(tmp_path)} == {"open loop"}


@pytest.mark.parametrize("options", [(), (f"--load={LOAD}", "--concurrency=1")])
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, options: tuple[str, ...]) -> None:
    with serving(Script(first=0.02)) as (url,):
        process = subprocess.Popen(
            [*COMMAND, url, *SWEEP, *options, "--rounds=900", f"--output={tmp_path}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=engine_environment(),
        )
        log = tmp_path / "log.jsonl"
        # A busy machine imports vLLM in a minute, and two turns of the load make five requests.
        until(lambda: log.exists() and log.read_text().count('"request"') >= 5, 180)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert lines(tmp_path, "end") == []
    found = report(tmp_path)
    assert found["interrupted"] is True
    assert 5 <= len(lines(tmp_path)) < 3000
    assert found["load"] if options else found["by_length"]
    assert "time to first token" in output or "median_ttft_ms" in output


def test_ctrl_c_before_the_load_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio 3.11 lets out the cancellation alone where the signal came before its first step."""

    async def cancelled(_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("vllm.benchmarks.serve.main_async", cancelled)
    with serving(Script(first=0.001)) as (url,):
        endpoint = parse(url, None)
        endpoint.replicas[0].connect(None)
        load = Load([endpoint], LOAD.split(), concurrency=1, rounds=1, seed=1, pause=0)
        with pytest.raises(KeyboardInterrupt):
            load.run(lambda *_: None)


def test_failed_requests_are_counted_and_named(tmp_path: Path) -> None:
    with serving(Script(first=0.001, broken_every=4)) as (url,):
        result = bench(url, *SWEEP, f"--output={tmp_path}", "--warm-up=0")
    assert result.returncode == 0, result.stderr
    failed = [each for each in lines(tmp_path) if each["error"]]
    assert len(failed) == 3
    assert sum(row["count"] for row in report(tmp_path)["errors"]) == 3
    assert "ends without a reason" in result.stdout


def test_an_endpoint_that_answers_no_request_is_an_error(tmp_path: Path) -> None:
    with serving(Script(takes_token_ids=False)) as (url,):
        result = bench(url, *SWEEP, f"--output={tmp_path / '1'}")
        assert result.returncode == 1
        assert "refuses a prompt of token ids: HTTP 400" in result.stderr
        result = bench(url, *SWEEP, "--warm-up=0", f"--output={tmp_path / '2'}")
        assert result.returncode == 1
        assert "HTTP 400" in result.stdout


def test_a_store_shows_its_bytes(tmp_path: Path) -> None:
    with redis_process(tmp_path) as store, serving(Script(first=0.001)) as (url,):
        place = (f"--redis={store.url}", f"--output={tmp_path / 'out'}")
        result = bench(f"{url},{url}", *SWEEP, *place)
        left = store.client().keys("kserve-lmcache-bench:*")
    assert result.returncode == 0, result.stderr
    assert left == []
    requests = lines(tmp_path / "out")
    assert [each["kind"] for each in requests[:6:2]] == ["cold", "same replica", "other replica"]
    # Nothing was loaded from it: nobody but the run itself talks to it.
    assert {e["remote_bytes"] for e in requests if e["kind"] == "other replica"} == {0}
    assert all(row["lower bound"] is None for row in report(tmp_path / "out")["by_length"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "one of the arguments URL --compare --own is required"),
        (("http://a", "--own"), "not allowed with argument URL"),
        (("--compare", "x=http://a", "x=http://b"), "two endpoints have one name"),
        (("ftp://a",), "is not [LABEL=]http://"),
        (("http://a", "--rate=1"), "unrecognized arguments: --rate=1"),
        (("http://a", "--rounds=0"), "0 is less than 1"),
        (("http://a", "--extra-body=[1]"), "--extra-body"),
        (("http://a", "--", "--model_id=x"), "are for --own"),
        (("--own", "--redis-server=/none"), "Install it"),
        (("report", "/none"), "cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    options = [f"--output={tmp_path}"] if "--" not in arguments else []
    result = bench(*arguments, *options)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--none", "--load: unrecognized arguments: --none"),
        ("--backend openai-audio", "--backend=openai-audio is not one of openai, openai-chat"),
        ("--tokenizer=/none", "vLLM's benchmark cannot run"),
    ],
)
def test_flags_that_vllm_refuses_are_named(flags: str, says: str) -> None:
    with serving(Script(first=0.001)) as (url,):
        endpoint = parse(url, None)
        endpoint.replicas[0].connect(None)
        load = Load([endpoint], f"{LOAD} {flags}".split(), None, rounds=1, seed=1, pause=0)
        with pytest.raises(UsageError, match=says):
            load.run(lambda kind, values: None)


def test_load_without_vllm_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("raise ModuleNotFoundError('No module named vllm')")
    place = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serving(Script(first=0.001)) as (url,):
        refused = bench(url, f"--load={LOAD}", f"--output={tmp_path / '1'}", PYTHONPATH=place)
        swept = bench(url, *SWEEP, f"--output={tmp_path / '2'}", PYTHONPATH=place)
    assert refused.returncode == 2
    assert "pip install 'kserve-lmcache[cpu]'" in refused.stderr
    assert swept.returncode == 0, swept.stderr


def test_an_endpoint_that_does_not_answer_is_named(tmp_path: Path) -> None:
    result = bench("http://user:secret@127.0.0.1:1", f"--output={tmp_path}")
    assert result.returncode == 1
    assert "cannot be measured" in result.stderr
    assert "secret" not in result.stderr + (tmp_path / "log.jsonl").read_text()


def test_own_servers_end_with_the_run(tmp_path: Path) -> None:
    environ = engine_environment(LMCACHE_REMOTE_URL="redis://elsewhere")
    with Servers(tmp_path, environ) as own:
        store = redis.Redis.from_url(own.redis(redis_binary()))
        assert store.dbsize() == 0
        # A setting of a remote store reaches no server.
        command = [sys.executable, "-c", "import os; exit('LMCACHE_REMOTE_URL' in os.environ)"]
        with pytest.raises(BenchmarkError, match="clean ended with 0"):
            own.start("clean", command, "redis://127.0.0.1:1")
        # The flag is unknown to a Redis, which ends.
        with pytest.raises(BenchmarkError, match=r"(?s)broken ended with 1; its log .*nothing"):
            own.start("broken", [redis_binary(), "--nothing", "x"], "redis://127.0.0.1:1")
    with pytest.raises(redis.exceptions.ConnectionError):
        store.ping()


def test_a_terminal_shows_the_time_left(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    # Rows and columns: a terminal of no width has no bar.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    with serving(Script(first=0.02)) as (url,), os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [*COMMAND, url, *SWEEP, "--rounds=5", f"--output={tmp_path}"],
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=engine_environment(),
        )
        os.close(theirs)
        shown = b""
        # At its end a terminal gives an error, not an empty read.
        with suppress(OSError):
            while piece := terminal.read(4096):
                shown += piece
        assert process.wait(30) == 0
    assert re.search(r"20/20 \[\d\d:\d\d<00:00", shown.decode())
    assert re.search(r" 1\d/20 \[\d\d:\d\d<\d\d:\d\d", shown.decode())


def test_a_pair_of_its_own_is_compared_with_offloading_off(tmp_path: Path) -> None:
    output = tmp_path / "out"
    place = os.pathsep.join([str(STAND_IN), str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = bench(
        *("--own", "--baseline", f"--redis-server={redis_binary()}", "--pause=0.3"),
        *("--lengths", "256", "1024", "--rounds=4", f"--output={output}"),
        *("--", "--model_id=any"),
        PYTHONPATH=place,
    )
    assert result.returncode == 0, result.stderr
    requests = lines(output)
    # Four rounds of two lengths, of two kinds without a store and of three with one.
    assert Counter(each["endpoint"] for each in requests) == {"no offload": 16, "offload": 24}
    for each in requests:
        assert (each["cached_tokens"] == 0) == (each["kind"] == "cold")
    remote = [each for each in requests if each["kind"] == "other replica"]
    assert {each["replica"] for each in remote} == {0, 1}
    # What the stand-in loads, and a line of the protocol around it.
    assert all(0 <= each["remote_bytes"] - 100 * each["length"] < 50 for each in remote)
    assert all(each["bare_seconds"] > 0 for each in remote)
    found = report(output)
    assert {(each["endpoint"], each["reference"]) for each in found["ratios"]} == {
        ("offload", "no offload")
    }
    for row in found["by_length"]:
        if row["endpoint"] == "offload":
            assert row["same replica"] < row["lower bound"] < row["cold"]
            assert row["÷ lower bound"] == row["other replica"] / row["lower bound"]
    for name in ("redis", "replica-1", "replica-2", "no-offload"):
        assert f"Starting {name} (log {output / name}.log)" in result.stderr
    # They have all ended.
    commands = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    (url, _) = lines(output, "run")[0]["endpoints"][1]["urls"]
    port = url.removesuffix("/v1").rpartition(":")[2]
    assert not [command for command in commands if f"--http_port={port}" in command]
