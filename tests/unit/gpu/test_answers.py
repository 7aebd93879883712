"""A hit is held to vLLM's own cache token for token, and to what was computed but for ties."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.gpu.steps.answers import (
    CHUNK,
    KNOWN,
    LENGTH,
    Answer,
    ask,
    check,
    compare,
    filler,
    prompt,
)
from tests.gpu.steps.context import StepError


def answer(
    tokens: str, cached: int = 0, gap: float = 5.0, logprobs: tuple[float, ...] | None = None
) -> Answer:
    """An answer of a token a letter, in which the likeliest token leads by ``gap``."""
    values = logprobs or (-0.5,) * len(tokens)
    return Answer(tuple(tokens), values, ((-0.5, -0.5 - gap),) * len(tokens), cached)


SAME = answer("abc", KNOWN)


def test_equal_answers_pass() -> None:
    row = compare("1", SAME, answer("abc", KNOWN), answer("abc"))
    check([row])
    assert row["largest difference of a logprob"] == 0.0
    assert row["as computed"] == "yes"


@pytest.mark.parametrize(
    ("loaded", "own", "computed", "problem"),
    [
        (answer("abc", 768), SAME, answer("abc"), "1: 768 tokens came from a cache"),
        (SAME, answer("abc", 1008), answer("abc"), "own cache has not 1024 tokens"),
        (answer("abd", KNOWN), SAME, answer("abd"), "other tokens than vLLM's own cache"),
        (SAME, SAME, answer("axc"), "not what was computed: no, at token 1"),
        (answer("abc", KNOWN, 0.1), SAME, answer("axc", 0, 5.0), "no, at token 1"),
    ],
)
def test_a_difference_is_seen(loaded: Answer, own: Answer, computed: Answer, problem: str) -> None:
    with pytest.raises(StepError, match=problem):
        check([compare("1", loaded, own, computed)])


def test_a_tie_may_turn_where_the_shape_is_another() -> None:
    loaded = answer("abc", KNOWN, gap=0.1)
    row = compare("1", loaded, loaded, answer("axc", gap=0.2))
    assert row["as computed"] == "a tie"
    check([row])


def test_the_deviation_of_logprobs_is_told() -> None:
    own = answer("ab", KNOWN, logprobs=(-0.5, -0.75))
    row = compare("1", answer("ab", KNOWN), own, answer("ab"))
    assert row["largest difference of a logprob"] == 0.25


def test_prompts_are_whole_chunks_and_share_no_beginning() -> None:
    prompts = [prompt(number) for number in range(200)]
    assert {len(each) for each in prompts} == {LENGTH}
    assert LENGTH // CHUNK * CHUNK == KNOWN
    assert LENGTH - KNOWN < 16  # no block of vLLM's
    assert len({each[0] for each in prompts}) == len(prompts)
    tokens = [token for each in [*prompts, filler(2, 2304)] for token in each]
    assert min(tokens) > 1000
    assert max(tokens) < 49_152  # the vocabulary of the test model


def test_a_request_asks_for_tokens_and_logprobs() -> None:
    seen: dict[str, Any] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        seen.update(json.loads(request.content))
        choice = {
            "logprobs": {
                "tokens": ["token_id:5", "token_id:6"],
                "token_logprobs": [-0.1, -0.2],
                "top_logprobs": [{"token_id:9": -3.0, "token_id:5": -0.1}, {"token_id:6": -0.2}],
            }
        }
        usage = {"prompt_tokens_details": {"cached_tokens": 1024}}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    with httpx.Client(transport=httpx.MockTransport(handle), base_url="http://test") as client:
        found = ask(client, [1, 2, 3], 2)
    assert (seen["temperature"], seen["prompt"], seen["max_tokens"]) == (0, [1, 2, 3], 2)
    assert seen["ignore_eos"]
    assert found.tokens == ("token_id:5", "token_id:6")
    assert found.tops == ((-0.1, -3.0), (-0.2,))
    assert found.cached == 1024
