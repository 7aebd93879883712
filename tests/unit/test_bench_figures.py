"""The figures of the benchmark, against a sheet of paper."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import pytest

from kserve_lmcache.bench import records
from kserve_lmcache.bench.figures import by_length, interval, ratios
from kserve_lmcache.bench.records import COLD, OTHER, SAME, Log, Record
from kserve_lmcache.bench.report import as_text, report
from kserve_lmcache.errors import UsageError


def record(**values: Any) -> Record:
    given = {"endpoint": "a", "replica": 0, "phase": "concurrency 1", "index": 0, "length": 100}
    given |= {"started": 0.0, "e2e": 1.0, "ttft": 0.25, "output_tokens": 4}
    return Record(**{**given, **values})


def log_of(requests: list[Record], *figures: dict[str, Any], labels: str = "ab") -> Log:
    run = {"format": records.FORMAT, "endpoints": [{"label": label} for label in labels]}
    return Log(run, requests, list(figures), complete=True)


def compared(factor: float, count: int = 60) -> list[Record]:
    """Pairs of requests: ``b`` takes ``factor`` times as long as ``a``."""
    draw = random.Random(3)
    found = []
    for index in range(count):
        # Long and short prompts: what differs between pairs is not between their halves.
        ttft = draw.uniform(0.1, 10)
        for endpoint, times in (("a", 1.0), ("b", factor)):
            noise = draw.uniform(0.97, 1.03)
            found.append(record(endpoint=endpoint, index=index, ttft=times * ttft * noise, e2e=20))
    return found


def test_a_slower_endpoint_is_told_from_noise_and_noise_from_a_slower_endpoint() -> None:
    for factor, verdict in ((1.3, "higher"), (0.7, "lower"), (1.0, "cannot tell: it may be 1")):
        rows = {row["figure"]: row for row in ratios(log_of(compared(factor)))}
        row = rows["TTFT p50"]
        assert (row["endpoint"], row["reference"], row["pairs"]) == ("b", "a", 60)
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["ratio"] == pytest.approx(factor, rel=0.05)
        assert row["verdict"] == verdict
        # 60 requests have fewer than five beyond their 99th percentile.
        assert rows["TTFT p99"]["verdict"] == "cannot tell: too few requests"


def test_the_same_log_gives_the_same_intervals() -> None:
    assert ratios(log_of(compared(1.2))) == ratios(log_of(compared(1.2)))


def test_an_interval_holds_the_true_ratio_about_95_times_in_100() -> None:
    draw = numpy.random.default_rng(5)
    held = 0
    for _ in range(200):
        pairs = draw.lognormal(0, 0.3, size=(40, 2)) * [1.2, 1.0]
        row = interval(pairs, 0.5)
        held += row["low"] <= 1.2 <= row["high"]
    assert 180 <= held <= 200


def test_requests_that_failed_on_one_side_are_no_pair() -> None:
    both = compared(1.0, 10)
    both[0] = replace(both[0], error="gone")
    assert {row["pairs"] for row in ratios(log_of(both))} == {9}
    assert ratios(log_of(both, labels="a")) == []


def test_figures_of_a_pair_by_hand() -> None:
    requests = [
        record(endpoint="a", index=0, ttft=0.2, e2e=1.2, output_tokens=11),
        record(endpoint="b", index=0, ttft=0.4, e2e=1.0, output_tokens=4),
        record(endpoint="a", index=1, ttft=0.4, e2e=1.4, output_tokens=11),
        record(endpoint="b", index=1, ttft=0.6, e2e=1.2, output_tokens=4),
    ]
    speeds = [
        {"phase": "concurrency 1", "endpoint": endpoint, "request_throughput": speed}
        for endpoint, speed in (("a", 2.0), ("b", 3.0), ("b", 6.0), ("a", 4.0))
    ]
    rows = {row["figure"]: row for row in ratios(log_of(requests, *speeds))}
    assert rows["TTFT p50"]["ratio"] == pytest.approx(0.5 / 0.3)
    assert rows["TPOT p50"]["ratio"] == pytest.approx(0.2 / 0.1)
    assert rows["E2E p50"]["ratio"] == pytest.approx(1.1 / 1.3)
    assert rows["requests/s"]["ratio"] == pytest.approx(1.5)
    assert rows["requests/s"]["pairs"] == 2


def swept() -> list[Record]:
    found = []
    for length, cold, other in ((512, 0.1, 0.2), (1024, 0.2, 0.1)):
        for kind, ttft in ((COLD, cold), (SAME, 0.03), (OTHER, other)):
            extra = {"remote_bytes": 500, "bare_seconds": 0.02} if kind == OTHER else {}
            for index, share in enumerate((1.0, 0.9, 5.0)):  # the median is 1
                found.append(
                    record(
                        kind=kind,
                        length=length,
                        index=index,
                        ttft=ttft * share,
                        phase=kind,
                        **extra,
                    )
                )
    return found


def test_a_sweep_has_its_medians_and_its_lower_bound() -> None:
    short, long = by_length(log_of(swept()), "a")
    assert (short["tokens"], short[COLD], short[OTHER]) == (512, 100, pytest.approx(200))
    # What the replica that has it takes, and the bare socket.
    assert short["lower bound"] == pytest.approx(30 + 20)
    assert long["÷ lower bound"] == pytest.approx(2)
    assert long["÷ cold"] == pytest.approx(0.5)
    assert by_length(log_of(swept()), "b") == []


def test_a_sweep_without_a_store_has_no_lower_bound_and_failed_requests_no_median() -> None:
    requests = [replace(each, bare_seconds=None) for each in swept()]
    requests += [replace(requests[0], ttft=None, error="gone") for _ in range(9)]
    row = by_length(log_of(requests), "a")[0]
    assert row["lower bound"] is None
    assert row["÷ lower bound"] is None
    assert row[COLD] == 100


def test_the_table_has_what_the_report_has() -> None:
    turns = [
        {"phase": "open loop", "endpoint": endpoint, "request_throughput": speed, "failed": 0}
        for endpoint, speed in (("b", 3.0), ("a", 2.0), ("a", 4.0), ("a", 9.0))
    ]
    found = report(log_of([*swept(), record(error="HTTP 500: gone")], *turns))
    assert [(row["endpoint"], row["request_throughput"]) for row in found["load"]] == [
        ("a", median((2.0, 4.0, 9.0))),
        ("b", 3.0),
    ]
    text = as_text(found)
    assert "HTTP 500: gone" in text
    assert [line.split() for line in text.splitlines() if "request_throughput" in line] == [
        ["request_throughput", "4", "3"]
    ]
    assert as_text(report(log_of([]))) == "No request ended."


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    write = records.writer(path)
    done = [record(index=number) for number in range(3)]
    write("run", {"format": records.FORMAT, "endpoints": [{"label": "a"}]})
    write("figures", {"phase": "p", "endpoint": "a", "failed": 0})
    for each in done:
        write("request", each)
    # A line is in the file before the next request ends.
    log = records.read(path)
    assert (log.requests, log.labels, log.complete) == (done, ["a"], False)
    assert log.figures == [{"phase": "p", "endpoint": "a", "failed": 0}]
    write("end", {})
    assert records.read(path).complete
    with pytest.raises(UsageError, match="exists"):
        records.writer(path)


def test_a_line_that_was_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write = records.writer(path)
    write("run", {"format": records.FORMAT, "endpoints": []})
    write("request", record())
    write("request", record(index=1))
    text = path.read_text()
    path.write_text(text[:-20])
    assert [each.index for each in records.read(path).requests] == [0]
    path.write_text(text.replace('"index"', '"number"', 1))
    with pytest.raises(UsageError, match="cannot be read"):
        records.read(path)
    path.write_text(json.dumps({"type": "request", **asdict(record())}) + "\n")
    with pytest.raises(UsageError, match="not a log of format"):
        records.read(path)
