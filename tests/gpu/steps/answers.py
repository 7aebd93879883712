"""Answers at temperature 0, and whether two are the same.

A prompt that was loaded is computed in another shape than one that was computed as a whole. In
bfloat16 that turns a tie between two tokens. Equal shapes give equal tokens: a prompt of whole
chunks and less than one of vLLM's blocks is as long in vLLM's own cache as in LMCache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from tests.gpu.steps.context import StepError

CHUNK = 256
KNOWN = 4 * CHUNK  # tokens that come from a cache
LENGTH = KNOWN + 8  # tokens of a prompt
GENERATED = 32
# Between the logprobs of two tokens, one of which bfloat16 may prefer in one shape and the other
# in another: a logit of 16 to 32 has steps of 0.125.
TIE = 0.3


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        tokens: that were generated.
        logprobs: of the tokens.
        tops: of the two likeliest tokens at each place, the likeliest first.
        cached: tokens of the prompt that came from a cache.
    """

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[float, ...], ...]
    cached: int


def prompt(number: int) -> list[int]:
    """Token ids: a passage, again and again, so that the model is seldom in doubt.

    Args:
        number: below 200, for ids of the test model's vocabulary.
    """
    passage = [2000 + 211 * number + 31 * each for each in range(24)]
    return (passage * (LENGTH // len(passage) + 1))[:LENGTH]


def filler(number: int, length: int) -> list[int]:
    """Token ids that drive others out of a cache."""
    return [3000 + (7919 * number + 13 * each) % 30_000 for each in range(length)]


def ask(client: httpx.Client, tokens: list[int], count: int = GENERATED) -> Answer:
    """One request, at temperature 0."""
    body: dict[str, Any] = {"model": "small", "prompt": tokens, "max_tokens": count}
    body |= {"temperature": 0, "ignore_eos": True, "logprobs": 2}
    body |= {"return_tokens_as_token_ids": True}
    answer = client.post("/openai/v1/completions", json=body).raise_for_status().json()
    said = answer["choices"][0]["logprobs"]
    details = answer["usage"]["prompt_tokens_details"] or {}
    tops = tuple(tuple(sorted(each.values(), reverse=True)) for each in said["top_logprobs"])
    logprobs = tuple(said["token_logprobs"])
    return Answer(tuple(said["tokens"]), logprobs, tops, details.get("cached_tokens") or 0)


def compare(name: str, loaded: Answer, own: Answer, computed: Answer) -> dict[str, Any]:
    """One row of a table.

    Args:
        name: of the prompt.
        loaded: from the tier.
        own: from vLLM's own cache, in the same shape.
        computed: without any cache.
    """
    deviations = (abs(a - b) for a, b in zip(loaded.logprobs, own.logprobs, strict=True))
    return {
        "prompt": name,
        "tokens loaded": loaded.cached,
        "tokens of vLLM's own cache": own.cached,
        "as from vLLM's own cache": loaded.tokens == own.tokens,
        "largest difference of a logprob": max(deviations) if loaded.tokens == own.tokens else None,
        "as computed": "yes" if loaded.tokens == computed.tokens else _turned(loaded, computed),
    }


def _turned(one: Answer, other: Answer) -> str:
    """Why two answers differ: ``a tie`` or ``no``, at the first token that differs."""
    pairs = zip(one.tokens, other.tokens, strict=True)
    place = next(number for number, (a, b) in enumerate(pairs) if a != b)
    gaps = [each.tops[place][0] - each.tops[place][1] for each in (one, other)]
    return "a tie" if max(gaps) <= TIE else f"no, at token {place}"


def check(rows: list[dict[str, Any]]) -> None:
    """Look for a wrong answer.

    Raises:
        StepError: the tokens of one differ, or it was not loaded.
    """
    for row in rows:
        if row["tokens loaded"] != KNOWN:
            raise StepError(f"{row['prompt']}: {row['tokens loaded']} tokens came from a cache")
        if row["tokens of vLLM's own cache"] != KNOWN:  # the shapes are not equal
            raise StepError(f"{row['prompt']}: vLLM's own cache has not {KNOWN} tokens of it")
        if not row["as from vLLM's own cache"]:
            raise StepError(f"{row['prompt']}: a hit has other tokens than vLLM's own cache")
        if row["as computed"] not in ("yes", "a tie"):
            raise StepError(
                f"{row['prompt']}: a hit is not what was computed: {row['as computed']}"
            )
