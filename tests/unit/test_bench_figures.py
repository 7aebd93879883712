"""The figures, against numpy or a sheet of paper."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from kserve_lmcache.bench import records, tiers
from kserve_lmcache.bench.compare import bootstrap, ratios
from kserve_lmcache.bench.floor import break_evens, crossing, floors
from kserve_lmcache.bench.records import Log, Record, Scrape, Writer
from kserve_lmcache.bench.statistics import distribution, loaded_seconds, summarize
from kserve_lmcache.errors import UsageError


def record(**values: Any) -> Record:
    given = {"endpoint": "a", "replica": 0, "workload": "random", "phase": "concurrency 1"}
    given |= {"index": 0, "length": 100, "started": 0.0, "e2e": 1.0, "ttft": 0.25}
    given |= {"prompt_tokens": 100, "output_tokens": 4, "cached_tokens": 0}
    return Record(**{**given, **values})


def test_quantiles_are_numpys() -> None:
    values = [random.Random(1).expovariate(1) for _ in range(37)]
    found = distribution([*values, None])
    assert found.count == 37
    assert found.mean == pytest.approx(sum(values) / 37)
    for share, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value == pytest.approx(numpy.percentile(values, share))
    assert distribution([None]).p50 is None


def test_a_summary_by_hand() -> None:
    done = [
        record(started=0.0, ttft=0.4, e2e=1.0, output_tokens=4, gaps=[0.1, 0.2, 0.3]),
        record(started=1.0, ttft=0.2, e2e=3.0, output_tokens=8, gaps=[0.4], cached_tokens=60),
        record(started=2.0, ttft=0.9, e2e=0.9, output_tokens=1),
        record(started=4.0, ttft=None, e2e=1.0, output_tokens=None, error="gone"),
    ]
    found = summarize(done, {"ttft": 0.5, "tpot": 0.3})
    assert (found.requests, found.errors, found.duration) == (4, 1, 5.0)
    assert found.tpot.count == 2
    assert found.tpot.mean == pytest.approx((0.6 / 3 + 2.8 / 7) / 2)
    assert found.itl.mean == pytest.approx(0.25)
    assert found.e2e.mean == pytest.approx(4.9 / 3)
    assert found.requests_per_second == pytest.approx(3 / 5)
    assert found.output_tokens_per_second == pytest.approx(13 / 5)
    assert found.total_tokens_per_second == pytest.approx(313 / 5)
    assert found.hit_ratio == pytest.approx(60 / 300)
    # The second has too long a TPOT and the third too long a TTFT.
    assert found.goodput == pytest.approx(1 / 5)
    assert summarize(done).goodput is None


def test_the_time_of_other_endpoints_turns_does_not_count() -> None:
    mine = [record(slice=0, started=0, e2e=2), record(slice=0, started=1, e2e=3)]
    mine += [record(slice=2, started=10, e2e=1)]
    assert loaded_seconds(mine) == 5
    assert loaded_seconds([]) == 0


def test_the_bootstrap_covers_the_true_ratio_as_often_as_it_says() -> None:
    generator = numpy.random.default_rng(5)
    covered = 0
    for seed in range(100):
        theirs = generator.lognormal(0, 0.5, size=60)
        mine = 1.2 * generator.lognormal(0, 0.5, size=60)
        _, low, high = bootstrap(mine, theirs, 0.5, seed)
        covered += low <= 1.2 <= high
    assert 88 <= covered <= 100


def test_what_weighs_on_both_of_a_pair_stays_out_of_the_interval() -> None:
    # Times that vary tenfold from pair to pair, and by a tenth within one.
    load = numpy.random.default_rng(1).lognormal(0, 1, size=80)
    ratio, low, high = bootstrap(1.1 * load, load, 0.5, seed=0)
    assert (ratio, low, high) == pytest.approx((1.1, 1.1, 1.1))


def compared(factor: float, count: int = 60) -> list[Record]:
    chance = random.Random(2)
    found = []
    for index in range(count):
        for label, times in (("a", 1.0), ("b", factor)):
            ttft = times * chance.uniform(0.9, 1.1)
            found.append(
                record(endpoint=label, index=index, slice=2 * index, ttft=ttft, e2e=ttft + 1)
            )
    return found


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, "lower"), (1.0, "no difference seen"), (1.5, "higher")]
)
def test_a_verdict_needs_an_interval_without_1(factor: float, verdict: str) -> None:
    found = {(r.figure, r.quantile): r for r in ratios(compared(factor), ["a", "b"])}
    median = found["TTFT", "p50"]
    assert median.ratio == pytest.approx(factor, rel=0.05)
    assert median.pairs == 60
    assert median.verdict == verdict
    assert found["TTFT", "p99"].verdict == "too few to tell"
    assert found["requests/s", ""].ratio == pytest.approx(2 / (1 + factor), rel=0.05)
    # The same log gives the same intervals.
    assert median == next(iter(ratios(compared(factor), ["a", "b"])))


def test_requests_that_failed_on_one_side_are_no_pair() -> None:
    both = compared(1.0, 10)
    both[0] = replace(both[0], error="gone")
    assert {ratio.pairs for ratio in ratios(both, ["a", "b"]) if ratio.quantile} == {9}
    assert ratios(both, ["a", "c"]) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 1.5, 0.5], (1536.0, True)),
        ([0.9, 0.5, 0.2], (512.0, False)),
        ([0.5, 0.8, 1.0], (None, False)),
        # It is only behind the last crossing that loading stays sooner.
        ([0.5, 1.5, 0.5], (1536.0, True)),
    ],
)
def test_the_break_even_length(values: list[float], expected: tuple[float | None, bool]) -> None:
    assert crossing([512, 1024, 2048], values) == expected


def swept() -> list[Record]:
    found = []
    for length, cold, remote in ((512, 0.1, 0.2), (1024, 0.2, 0.1)):
        for kind, ttft in (("cold", cold), ("warm local", 0.03), ("warm remote", remote)):
            extra = {"remote_bytes": 500, "bare_seconds": 0.02} if kind == "warm remote" else {}
            found.append(
                record(workload="lengths", kind=kind, length=length, ttft=ttft, e2e=ttft, **extra)
            )
    return found


def test_the_floor_and_the_break_even_of_a_sweep() -> None:
    first, second = floors(swept())
    assert (first.length, first.floor, first.cold) == (512, pytest.approx(0.05), 0.1)
    assert second.remote / second.floor == pytest.approx(2)
    (line,) = break_evens(swept())
    assert line.tokens == pytest.approx(512 + 512 * (1.0 / 1.5))
    assert line.says == "loading is sooner from about 853 tokens on"


OURS = """\
# TYPE kserve_lmcache_prompt_tokens counter
kserve_lmcache_prompt_tokens_total{source="computed"} 10
kserve_lmcache_prompt_tokens_total{source="prefix_cache"} 20
kserve_lmcache_prompt_tokens_total{source="remote"} 30
# TYPE kserve_lmcache_remote_read_bytes counter
kserve_lmcache_remote_read_bytes_total{tier="remote"} 77
"""
BY_SOURCE = """\
# TYPE vllm:prompt_tokens_by_source counter
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 10
vllm:prompt_tokens_by_source_total{engine="1",source="local_compute"} 5
vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer"} 30
"""
OLDER = """\
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total 100
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total 30
# TYPE vllm:external_prefix_cache_queries counter
vllm:external_prefix_cache_queries_total 70
# TYPE vllm:external_prefix_cache_hits counter
vllm:external_prefix_cache_hits_total 20
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            OURS + BY_SOURCE,
            {
                "tokens computed": 10,
                "tokens prefix cache": 20,
                "tokens remote": 30,
                "bytes kserve_lmcache_remote_read_bytes_total remote": 77,
            },
        ),
        (BY_SOURCE + OLDER, {"tokens computed": 15, "tokens connector": 30}),
        (OLDER, {"tokens prefix cache": 30, "tokens connector": 20, "tokens computed": 50}),
        ("# TYPE other counter\nother_total 3\n", {}),
    ],
)
def test_the_finest_counters_of_an_endpoint_are_read(text: str, expected: dict[str, float]) -> None:
    assert tiers.counters(text) == expected


def test_shares_are_the_growth_of_all_replicas_also_over_a_restart() -> None:
    def scrape(replica: int, at: float, computed: float, remote: float) -> Scrape:
        values = {"tokens computed": computed, "tokens remote": remote}
        return Scrape("a", replica, "p", at, values)

    seen = [scrape(0, 0, 100, 50), scrape(1, 0, 0, 0), scrape(0, 9, 130, 60)]
    # The second replica began anew after 40 tokens.
    seen += [scrape(1, 5, 40, 0), scrape(1, 9, 10, 10)]
    assert tiers.shares(seen, [], "a", "p") == {"computed": 0.8, "remote": 0.2}
    usage = [record(phase="p", cached_tokens=25), record(phase="p", cached_tokens=None)]
    assert tiers.shares([], usage, "a", "p") == {"cache": 0.25, "computed": 0.75}
    assert tiers.shares([], [], "a", "p") == {}


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    done = [record(index=number, gaps=[0.1], error=None) for number in range(3)]
    with Writer(path) as log:
        log.run(endpoints=[{"label": "a"}], seed=4)
        log.scrape(Scrape("a", 0, "p", 1.0, {"tokens computed": 3.0}))
        for each in done:
            log.request(each)
        # What is in the log is in the file before the next request ends.
        assert records.read(path).requests == done
        assert not records.read(path).complete
        log.end(interrupted=True)
    found = records.read(path)
    assert (found.complete, found.interrupted, found.run["seed"]) == (True, True, 4)
    with pytest.raises(UsageError, match="exists"):
        Writer(path)


def test_a_line_that_was_cut_off_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Writer(path) as log:
        log.run(endpoints=[])
        log.request(record())
        log.request(record(index=1))
    text = path.read_text()
    path.write_text(text[:-20])
    assert [each.index for each in records.read(path).requests] == [0]
    path.write_text(text.replace('"endpoint"', '"end"', 1))
    with pytest.raises(UsageError, match=r"log\.jsonl:2"):
        records.read(path)
    path.write_text(json.dumps({"type": "run", "format": 99}) + "\n" + text)
    with pytest.raises(UsageError, match="format 99"):
        records.read(path)


def test_logs_of_several_runs_keep_their_endpoints_apart() -> None:
    first = Log(run={"endpoints": [{"label": "a"}]}, requests=[record()], complete=True)
    second = Log(
        run={"endpoints": [{"label": "a"}, {"label": "b"}]},
        requests=[record(), record(endpoint="b")],
        complete=True,
    )
    both = records.merged([first, second])
    assert both.endpoints() == ["a #1", "a #2", "b"]
    assert [each.endpoint for each in both.requests] == ["a #1", "a #2", "b"]
