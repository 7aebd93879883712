"""``kserve-lmcache bench`` against a scripted endpoint, whose times are known beforehand."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections import Counter
from contextlib import suppress
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import redis

from kserve_lmcache.bench.own import StartError, running
from tests.support.bench import COMMAND, bench, figures, lines, reported
from tests.support.openai_server import Script, serving
from tests.support.server import ROOT, engine_environment
from tests.support.stores import redis_process
from tests.support.stores.binaries import redis_binary
from tests.support.waiting import until

STAND_IN = ROOT / "tests" / "support" / "stand_in_replica"
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_figures_are_those_of_the_log_and_of_the_endpoint(tmp_path: Path) -> None:
    script = Script(first=0.05, between=0.01)
    with serving(script) as (url,):
        result = bench(
            url,
            "--workload=documents",
            "--requests=24",
            "--groups=4",
            "--unique-tokens=10",
            "--shared-tokens=100",
            "--output-tokens=6",
            "--concurrency=3",
            "--seed=5",
            "--goodput=ttft:1000",
            f"--output={tmp_path}",
        )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["results"]
    assert reported(row) == pytest.approx(figures(lines(tmp_path)))
    assert row["requests"] == 24
    assert row["goodput"] == pytest.approx(row["requests_per_second"])
    # As the endpoint was told to be; a busy machine makes it slower, and never faster.
    assert 0.05 <= row["ttft"]["p50"] < 0.15
    assert 0.01 <= row["tpot"]["p50"] < 0.03
    assert 0.1 <= row["e2e"]["p50"] < 0.3
    assert script.together == 3
    # The CSV and the table say the same.
    (line,) = csv.DictReader((tmp_path / "report.csv").open())
    assert float(line["ttft_p50_s"]) == row["ttft"]["p50"]
    assert float(line["hit_ratio"]) == row["hit_ratio"] == 0
    ttft = re.search(r"TTFT +(\S+) +(\S+) +(\S+) +(\S+)$", result.stdout, re.MULTILINE)
    assert ttft is not None
    assert float(ttft[2]) == pytest.approx(1000 * row["ttft"]["p50"], rel=0.01)


def test_a_report_from_the_log_is_the_one_of_the_run(tmp_path: Path) -> None:
    with serving(Script(first=0.01, between=0.002)) as (url,):
        run = bench(url, "--requests=8", "--groups=2", f"--output={tmp_path / 'run'}")
    again = bench("report", str(tmp_path / "run" / "log.jsonl"), f"--output={tmp_path / 'again'}")
    assert (run.returncode, again.returncode) == (0, 0), run.stderr + again.stderr
    assert again.stdout == run.stdout
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {"report.json", "report.html", "ttft_distribution.png"} <= names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_endpoints_take_turns_and_the_slower_one_is_found(tmp_path: Path) -> None:
    with serving(Script(first=0.02), Script(first=0.04)) as (fast, slow):
        result = bench(
            "--compare",
            f"fast={fast}",
            f"slow={slow}",
            "--workload=random",
            "--pause=0.05",
            "--requests=25",
            "--output-tokens=2",
            f"--output={tmp_path}",
        )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    median = next(each for each in report["ratios"] if each["quantile"] == "p50")
    assert (median["endpoint"], median["reference"]) == ("slow", "fast")
    assert median["low"] <= median["ratio"] <= median["high"]
    assert 1.3 < median["ratio"] < 2.2
    assert median["pairs"] == 25
    # Never were both under way, and no endpoint had three requests without one to the other.
    requests = lines(tmp_path)
    assert all(a["started"] + a["e2e"] <= b["started"] for a, b in pairwise(requests))
    order = "".join(each["endpoint"][0] for each in requests)
    assert "fff" not in order
    assert "sss" not in order


def test_endpoints_that_share_a_store_are_asked_for_other_tokens(tmp_path: Path) -> None:
    one, other = Script(first=0.001), Script(first=0.001)
    with serving(one, other) as (first, second):
        arguments = ("--workload=random", "--requests=3", "--output-tokens=2", "--warm-up=0")
        pair = (f"a={first}", f"b={second}")
        bench("--compare", *pair, "--pause=0", *arguments, f"--output={tmp_path}")
    prompts = [[body["prompt"] for body in script.bodies[1:]] for script in (one, other)]
    assert [len(prompt) for prompt in prompts[0]] == [len(prompt) for prompt in prompts[1]]
    assert all(mine[0] != theirs[0] for mine, theirs in zip(*prompts, strict=True))


def test_words_where_an_endpoint_takes_no_token_ids(tmp_path: Path) -> None:
    for number, options in enumerate(((), ("--api=chat",))):
        script = Script(first=0.001, takes_token_ids=False)
        with serving(script) as (url,):
            output = tmp_path / str(number)
            result = bench(url, "--workload=random", "--requests=3", *options, f"--output={output}")
        assert result.returncode == 0, result.stderr
        # The scripted endpoint counts a word as a token, which is found out.
        assert {each["prompt_tokens"] for each in lines(output)} == {1024}
        assert lines(output, "run")[0]["endpoints"][0]["prompts"] == "words"
        assert ("messages" in script.bodies[-1]) == bool(options)


def test_poisson_arrivals_do_not_wait_for_answers(tmp_path: Path) -> None:
    script = Script(first=1.0)
    with serving(script) as (url,):
        result = bench(
            url,
            "--workload=random",
            "--requests=20",
            "--output-tokens=1",
            "--rate=40",
            "--seed=1",
            f"--output={tmp_path}",
        )
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path)
    # All arrive in half a second or so, while the first is still being answered.
    assert script.together == 20
    assert all(0 <= each["started"] - each["due"] < 0.3 for each in requests)


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "\n".join(
            json.dumps(
                {
                    "timestamp": time,
                    "input_length": 700,
                    "output_length": 3,
                    "hash_ids": [1, number],
                }
            )
            for number, time in enumerate((0, 400, 800), start=2)
        )
    )
    script = Script(first=0.001)
    with serving(script) as (url,):
        result = bench(url, f"--trace={trace}", "--speed=2", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    requests = lines(tmp_path / "out")
    begin = requests[0]["due"]
    assert [each["due"] - begin for each in requests] == pytest.approx([0, 0.2, 0.4])
    prompts = [body["prompt"] for body in script.bodies[-3:]]
    assert prompts[0][:512] == prompts[1][:512] == prompts[2][:512]
    assert len({tuple(prompt[512:]) for prompt in prompts}) == 3


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    with serving(Script(first=0.02)) as (url,):
        process = subprocess.Popen(
            [*COMMAND, url, "--requests=5000", f"--output={tmp_path}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=engine_environment(),
        )
        log = tmp_path / "log.jsonl"
        until(lambda: log.exists() and log.read_text().count('"request"') >= 5, 60)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    requests = lines(tmp_path)
    assert lines(tmp_path, "end") == [{"type": "end", "interrupted": True}]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"] is True
    assert 5 <= report["results"][0]["requests"] == len(requests) < 5000
    assert "TTFT" in output
    assert "ended before its time" in (tmp_path / "report.html").read_text()


def test_failed_requests_are_counted_and_named(tmp_path: Path) -> None:
    with serving(Script(first=0.001, broken_every=4)) as (url,):
        arguments = ("--workload=random", "--requests=20", "--output-tokens=3")
        result = bench(url, *arguments, f"--output={tmp_path}")
    (row,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert 0 < row["errors"] < 20
    assert row["ttft"]["count"] == 20 - row["errors"]
    assert "the answer ends without a reason" in result.stdout


def test_a_store_shows_its_bytes_and_its_floor(tmp_path: Path) -> None:
    with redis_process(tmp_path) as store, serving(Script(first=0.001)) as (url,):
        result = bench(
            f"{url},{url}",
            "--workload=lengths",
            "--lengths",
            "64",
            "128",
            "--requests=2",
            f"--redis={store.url}",
            f"--output={tmp_path / 'out'}",
        )
        left = store.client().keys("kserve-lmcache-bench:*")
    assert result.returncode == 0, result.stderr
    assert left == []
    requests = lines(tmp_path / "out")
    assert [each["kind"] for each in requests[:6:2]] == ["cold", "warm local", "warm remote"]
    # Nothing was loaded from it: nobody but the run itself talks to it.
    assert {each["remote_bytes"] for each in requests if each["kind"] == "warm remote"} == {0}
    warm = [each for each in requests if each["kind"] != "cold"]
    assert all(each["cached_tokens"] == each["prompt_tokens"] - 1 for each in warm)
    assert (tmp_path / "out" / "ttft_by_length.png").read_bytes().startswith(PNG)
    assert (tmp_path / "out" / "break_even.png").read_bytes().startswith(PNG)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_fetches_nothing_and_runs_nothing(tmp_path: Path) -> None:
    with serving(Script(first=0.001)) as (url,):
        named = f"<b>&name={url}"
        pair = ("--compare", named, f"b={url}")
        bench(*pair, "--requests=6", "--pause=0", f"--output={tmp_path}")
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert "default-src 'none'" in text
    assert not {"script", "link", "iframe", "b"} & {
        tag for tag, attributes in page.tags if attributes.get("rel") != "icon"
    }
    for _, attributes in page.tags:
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert "style" not in attributes
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all(image["alt"] for image in images)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give one of URL, --compare and --own"),
        (("http://a", "--own"), "give one of URL, --compare and --own"),
        (("--compare", "http://a"), "--compare needs two"),
        (("--compare", "x=http://a", "x=http://b"), "two endpoints are called x"),
        (("ftp://a",), "is not [LABEL=]http://"),
        (("http://a", "--rate=1", "--concurrency=2"), "give one of --trace, --rate"),
        (("http://a", "--rate=0"), "--rate=0 is not a number above 0"),
        (("http://a", "--requests=0"), "0 is less than 1"),
        (("http://a", "--goodput=speed:3"), "--goodput speed:3 is not NAME:MILLISECONDS"),
        (("http://a", "--trace=/none"), "cannot be read"),
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


def test_an_endpoint_that_does_not_answer_is_named(tmp_path: Path) -> None:
    result = bench("http://user:secret@127.0.0.1:1", f"--output={tmp_path}")
    assert result.returncode == 1
    assert "cannot be measured" in result.stderr
    assert "secret" not in result.stderr + (tmp_path / "log.jsonl").read_text()


def test_own_servers_end_with_the_run(tmp_path: Path) -> None:
    with running(tmp_path, [], engine_environment(LMCACHE_REMOTE_URL="redis://elsewhere")) as own:
        own.start_redis(redis_binary())
        assert redis.Redis.from_url(own.redis_url).dbsize() == 0
        assert own.seconds_to_ready["redis"] < 60
        # The flag is unknown to a Redis, which ends.
        with pytest.raises(StartError, match=r"(?s)broken ended with 1; its log .*nothing"):
            own._start("broken", [redis_binary(), "--nothing", "x"], {}, lambda: False)
    with pytest.raises(redis.exceptions.ConnectionError):
        redis.Redis.from_url(own.redis_url).ping()


def test_a_terminal_shows_the_time_left(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    # Rows and columns: a terminal of no width has no bar.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    with serving(Script(first=0.02)) as (url,), os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [*COMMAND, url, "--workload=random", "--requests=20", f"--output={tmp_path}"],
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
    assert re.search(r"random, concurrency 1: .*20/20 \[\d\d:\d\d<00:00", shown.decode())
    assert re.search(r" 1\d/20 \[\d\d:\d\d<\d\d:\d\d", shown.decode())


def test_a_pair_of_its_own_is_compared_with_offloading_off(tmp_path: Path) -> None:
    output = tmp_path / "out"
    place = os.pathsep.join([str(STAND_IN), str(ROOT), os.environ.get("PYTHONPATH", "")])
    result = bench(
        "--own",
        "--baseline",
        f"--redis-server={redis_binary()}",
        "--workload=lengths",
        "--pause=0.3",
        "--lengths",
        "256",
        "1024",
        "--requests=4",
        f"--output={output}",
        "--",
        "--model_id=any",
        PYTHONPATH=place,
    )
    assert result.returncode == 0, result.stderr
    servers = {each["name"]: each for each in lines(output, "server")}
    assert set(servers) == {"redis", "no-offload", "replica-1", "replica-2"}
    requests = lines(output)
    # Four rounds of two lengths, of two kinds without a store and of three with one.
    assert Counter(each["endpoint"] for each in requests) == {"no offload": 16, "offload": 24}
    for each in requests:
        assert (each["cached_tokens"] == 0) == (each["kind"] == "cold")
    remote = [each for each in requests if each["kind"] == "warm remote"]
    assert {each["replica"] for each in remote} == {0, 1}
    # What the stand-in loads, and a line of the protocol around it.
    assert all(0 <= each["remote_bytes"] - 100 * each["length"] < 50 for each in remote)
    assert all(each["bare_seconds"] > 0 for each in remote)
    report = json.loads((output / "report.json").read_text())
    assert {(each["endpoint"], each["reference"]) for each in report["ratios"]} == {
        ("offload", "no offload")
    }
    (line,) = report["break_even"]
    assert (line["endpoint"], line["shortest"], line["longest"]) == ("offload", 256, 1024)
    for floor in report["floors"]:
        assert 0 < floor["floor"] < floor["cold"]
    for each in output.glob("*.log"):
        assert str(each) in result.stderr
    # They have all ended.
    commands = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    ports = [url.rpartition(":")[2] for url in lines(output, "run")[0]["endpoints"][1]["urls"]]
    assert not [command for command in commands if f"--http_port={ports[0]}" in command]
