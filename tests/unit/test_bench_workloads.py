"""What the benchmark asks: the same for the same seed, with the reuse that it is named for."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy
import pytest

from kserve_lmcache.bench import trace
from kserve_lmcache.bench.arrivals import Arrivals, poisson
from kserve_lmcache.bench.prompts import FIRST_TOKEN, LAST_TOKEN, Prompt, Segment, token_ids, words
from kserve_lmcache.bench.workloads import COLD, REMOTE, WARM, WORKLOADS, Request
from kserve_lmcache.errors import UsageError
from tests.support.server import ROOT


def made(name: str, seed: int = 1, **shape: int) -> list[Request]:
    workload = WORKLOADS[name]
    return workload.make(replace(workload.defaults, **shape), seed)


def shared(first: Prompt, second: Prompt) -> int:
    """Tokens that two prompts have in common in front."""
    pairs = zip(token_ids(first, "s"), token_ids(second, "s"), strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), -1)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_gives_the_same_requests_and_another_seed_others(name: str) -> None:
    assert made(name) == made(name)
    first, again, other = (token_ids(made(name, seed)[0].prompt, "salt")[:64] for seed in (1, 1, 2))
    assert first == again != other


def test_tokens_are_the_same_in_another_process() -> None:
    segment = Segment("a name", 700)
    probe = (
        "from kserve_lmcache.bench.prompts import *;"
        "print(token_ids([Segment('a name', 700)], 'salt'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "runtime",
        env={"PYTHONHASHSEED": "77"},
    )
    assert json.loads(result.stdout) == token_ids([segment], "salt")


@pytest.mark.parametrize("tokens", [1, 512, 1024, 1025, 5000])
def test_a_prompt_has_the_tokens_that_it_says_and_none_out_of_any_vocabulary(tokens: int) -> None:
    ids = token_ids([Segment("x", tokens)], "salt")
    assert len(ids) == tokens
    assert min(ids) >= FIRST_TOKEN
    assert max(ids) <= LAST_TOKEN
    assert ids == token_ids([Segment("x", 6000)], "salt")[:tokens]
    assert ids != token_ids([Segment("x", tokens)], "pepper")


def test_words_share_prefixes_as_tokens_do() -> None:
    first, second = Segment("shared", 40), Segment("other", 10)
    one = words([first, second], "salt", words_per_token=0.5).split()
    two = words([first], "salt", words_per_token=0.5).split()
    assert len(one) == 25
    assert one[:20] == two


def test_a_conversation_goes_on_from_its_history() -> None:
    requests = made("chat", groups=3, turns=4, requests=24)
    assert len(requests) == 24
    sessions = Counter(request.session for request in requests)
    assert sessions == dict.fromkeys(range(6), 4)
    mine = [request for request in requests if request.session == 1]
    assert [request.turn for request in mine] == [0, 1, 2, 3]
    for earlier, later in pairwise(mine):
        assert later.prompt[: len(earlier.prompt)] == earlier.prompt
        assert later.tokens == earlier.tokens + earlier.output_tokens + 128
    first, second = requests[:2]
    assert shared(first.prompt, second.prompt) == 0


def test_documents_are_asked_about_equally_often() -> None:
    requests = made("documents", groups=5, requests=40)
    assert set(Counter(request.prompt[0] for request in requests).values()) == {8}
    assert len({request.prompt[1] for request in requests}) == 40


def test_popular_chunks_are_taken_more_often_and_none_twice_in_a_request() -> None:
    requests = made("rag", groups=20, chunks=3, requests=400)
    names = Counter(segment.name for request in requests for segment in request.prompt[:-1])
    counts = [names[f"chunk 1 {number}"] for number in range(20)]
    assert counts[0] > 2 * counts[5] > 2 * counts[19] > 0
    assert all(len(set(request.prompt)) == 4 for request in requests)


def test_what_is_shared_by_all_and_by_none() -> None:
    first, second = made("system", shared_tokens=300)[:2]
    assert shared(first.prompt, second.prompt) == 300
    first, second = made("random")[:2]
    assert shared(first.prompt, second.prompt) == 0


def test_lengths_are_asked_cold_then_warm_then_elsewhere() -> None:
    workload = WORKLOADS["lengths"]
    shape = replace(workload.defaults, lengths=(512, 1024), requests=2, replicas=2)
    requests = workload.make(shape, 1)
    seen = [(each.kind, each.replica, each.tokens) for each in requests[:6]]
    assert seen == [
        (COLD, 0, 512),
        (COLD, 0, 1024),
        (WARM, 0, 512),
        (WARM, 0, 1024),
        (REMOTE, 1, 512),
        (REMOTE, 1, 1024),
    ]
    # The next round begins on the other replica.
    assert [each.replica for each in requests[6::2]] == [1, 1, 0]
    # A single replica has fewer kinds, and the same indices for those that it has.
    single = workload.make(replace(shape, replicas=1), 1)
    named = {each.index: each for each in requests}
    assert len(single) == 8
    for each in single:
        assert each.index is not None
        other = named[each.index]
        assert (each.kind, each.prompt) == (other.kind, other.prompt)


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def entry(timestamp: float, tokens: int, *ids: int, output: int = 5) -> dict[str, object]:
    return {
        "timestamp": timestamp,
        "input_length": tokens,
        "output_length": output,
        "hash_ids": list(ids),
    }


def test_equal_hash_ids_of_a_trace_are_equal_blocks(tmp_path: Path) -> None:
    file = write(
        tmp_path / "trace.jsonl",
        entry(1000, 1300, 7, 8, 9),
        entry(2500, 1100, 7, 8, 10, output=0),
        entry(4000, 1500, 7, 8),
    )
    requests, left_out = trace.read(file)
    assert left_out == 0
    assert [request.tokens for request in requests] == [1300, 1100, 1500]
    assert [request.due for request in requests] == [0, 1.5, 3]
    assert [request.output_tokens for request in requests] == [5, 1, 5]
    first, second, third = (request.prompt for request in requests)
    assert shared(first, second) == 1024
    # Without an id for it, the rest of a prompt is nobody else's.
    assert shared(first, third) == 1024


def test_a_trace_can_be_faster_and_shorter(tmp_path: Path) -> None:
    # Lines that are not in the order of their times, and an empty one.
    lines = (entry(3000, 100, 1), "", entry(1000, 100, 1), entry(2000, 9000, 2))
    file = write(tmp_path / "trace.jsonl", *lines)
    requests, left_out = trace.read(file, speed=4, max_tokens=105)
    assert [request.due for request in requests] == [0, 0.5]
    assert left_out == 1
    assert len(trace.read(file, limit=2)[0]) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "trace.jsonl:2 is not JSON"),
        ("[]", "trace.jsonl:2 is not a JSON object"),
        (entry(-1, 5, 1), "timestamp is -1"),
        (entry(math.nan, 5, 1), "timestamp is nan"),
        ({**entry(0, 5), "input_length": None}, "input_length is None"),
        ({**entry(0, 5), "hash_ids": ["a"]}, "hash_ids is not a list of whole numbers"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: object, says: str) -> None:
    file = write(tmp_path / "trace.jsonl", entry(0, 5, 1), line)
    with pytest.raises(UsageError, match=says):
        trace.read(file)


def test_a_trace_without_requests_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no request that short"):
        trace.read(write(tmp_path / "t", entry(0, 500, 1)), max_tokens=10)
    with pytest.raises(UsageError, match="cannot be read"):
        trace.read(tmp_path / "none")


def test_poisson_arrivals_have_exponential_gaps() -> None:
    times = poisson(4.0, 20_000, seed=3)
    assert times == poisson(4.0, 20_000, seed=3) != poisson(4.0, 20_000, seed=4)
    gaps = numpy.diff([0.0, *times])
    assert min(gaps) > 0
    assert numpy.mean(gaps) == pytest.approx(0.25, rel=0.03)
    # For exponential gaps the deviation is the mean, and 1 - 1/e of them are below it.
    assert numpy.std(gaps) == pytest.approx(0.25, rel=0.03)
    assert numpy.mean(gaps < 0.25) == pytest.approx(1 - 1 / math.e, abs=0.01)


@pytest.mark.parametrize("arrivals", [{"rate": 0}, {"rate": math.inf}, {"concurrency": 0}])
def test_impossible_arrivals_are_refused(arrivals: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Arrivals(**arrivals)  # type: ignore[arg-type]
