"""What the sweep of the benchmark asks, and of whom."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from kserve_lmcache.bench.client import Endpoint
from kserve_lmcache.bench.records import COLD, OTHER, SAME, Record
from kserve_lmcache.bench.sweep import Sweep, token_ids
from tests.support.server import ROOT


class Replica:
    """It notes what it is asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        return {"e2e": 0.2, "ttft": 0.1}


def swept(*replicas: int, **values: Any) -> tuple[list[Endpoint], list[Record]]:
    """The endpoints, with so many replicas each, and the records of a sweep."""
    endpoints = [
        Endpoint("ab"[number], [Replica() for _ in range(count)])  # type: ignore[arg-type]
        for number, count in enumerate(replicas)
    ]
    given = {"lengths": (512, 1024), "rounds": 2, "extra": {"max_tokens": 3}, "seed": 7}
    sweep = Sweep(endpoints, pause=0, store=None, **{**given, **values})
    found: list[Record] = []
    sweep.run(lambda kind, record: found.append(record))
    return endpoints, found


def test_lengths_are_asked_cold_then_on_the_same_replica_then_on_another() -> None:
    (endpoint,), found = swept(2)
    seen = [(each.kind, each.replica, each.length) for each in found[:6]]
    assert seen == [
        (COLD, 0, 512),
        (COLD, 0, 1024),
        (SAME, 0, 512),
        (SAME, 0, 1024),
        (OTHER, 1, 512),
        (OTHER, 1, 1024),
    ]
    # The next round begins on the other replica.
    assert [each.replica for each in found[6::2]] == [1, 1, 0]
    first, second = ([body["prompt"] for body in r.bodies] for r in endpoint.replicas)
    assert list(map(len, first)) == [512, 1024] * 3
    # The prompt is the same three times, and new in the next round.
    assert first[0] == first[2] == second[0]
    assert first[0] != second[2] == second[4] == first[4]


def test_what_is_new_in_one_prompt_is_new_from_its_first_token() -> None:
    (endpoint,), _ = swept(1)
    prompts = [body["prompt"] for body in endpoint.replicas[0].bodies]  # type: ignore[attr-defined]
    assert len({prompt[0] for prompt in prompts}) == len({tuple(prompt) for prompt in prompts}) == 4


def test_endpoints_take_turns_with_pairs_of_requests_and_tokens_of_their_own() -> None:
    (a, b), found = swept(2, 1, rounds=20)
    # A single replica has fewer kinds, and the same indices for those that it has.
    pairs = {each.index: each for each in found if each.endpoint == "a"}
    others = [each for each in found if each.endpoint == "b"]
    assert (len(pairs), len(others)) == (120, 80)
    for each in others:
        pair = pairs[each.index]
        assert (each.kind, each.length, each.phase) == (pair.kind, pair.length, pair.phase)
    # Neither of them is always first.
    firsts = [found[number].endpoint for number in range(0, 8)]
    assert set(firsts[::2]) == {"a", "b"}
    tokens = [
        {tuple(body["prompt"]) for r in each.replicas for body in r.bodies} for each in (a, b)
    ]  # type: ignore[attr-defined]
    assert not tokens[0] & tokens[1]


def test_a_seed_repeats_the_prompts_and_another_seed_has_others() -> None:
    (one,), _ = swept(1)
    (again,), _ = swept(1)
    (other,), _ = swept(1, seed=8)
    bodies = [each.replicas[0].bodies for each in (one, again, other)]  # type: ignore[attr-defined]
    assert bodies[0] == bodies[1] != bodies[2]
    assert bodies[0][0] | {"max_tokens": 3, "temperature": 0, "ignore_eos": True} == bodies[0][0]


@pytest.mark.parametrize("count", [1, 512, 5000])
def test_token_ids_are_of_every_vocabulary_and_the_same_in_another_process(count: int) -> None:
    ids = token_ids("a name", count)
    assert len(ids) == count
    assert min(ids) >= 1000
    assert max(ids) < 17_000
    probe = f"from kserve_lmcache.bench.sweep import *;print(token_ids('a name', {count}))"
    result = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "runtime",
        env={"PYTHONHASHSEED": "77"},
    )
    assert json.loads(result.stdout) == ids
