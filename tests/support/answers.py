"""Answers that are asked for and compared.

Texts alone tell little of a small model, probabilities do: one of a few layers says the same to
many prompts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

# Of a logprob in float32: what tests/e2e/test_numerics.py allows to three layers is 6e-4 for six.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Answer:
    """What was generated, and the logprob of each of its tokens."""

    text: str
    logprobs: tuple[float, ...]

    def is_like(self, other: Answer) -> bool:
        """Whether it is the same but for rounding."""
        near = pytest.approx(other.logprobs, rel=0, abs=TOLERANCE)
        return self.text == other.text and self.logprobs == near


def answer_of(completion: ChatCompletion) -> Answer:
    """The first choice, of a request with ``logprobs=True``."""
    choice = completion.choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    return Answer(choice.message.content or "", tuple(token.logprob for token in tokens))


@dataclass(frozen=True)
class Record:
    """What came of a request.

    Attributes:
        ttft: seconds until the first token; ``None`` when there was none.
        seconds: until the last token, or the error.
        answer: whole or in part.
        error: type and text, or ``None``.
    """

    ttft: float | None
    seconds: float
    answer: Answer
    error: str | None


def ask(client: openai.OpenAI, model: str, prompt: str, max_tokens: int) -> Record:
    """One request, streamed; no error is raised, the record has it."""
    start = time.monotonic()
    ttft, error = None, None
    pieces: list[str] = []
    logprobs: list[float] = []
    finished = False
    try:
        with client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            seed=0,
            max_tokens=max_tokens,
            logprobs=True,
            stream=True,
        ) as stream:
            for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        ttft = ttft or time.monotonic() - start
                        pieces.append(choice.delta.content)
                    if choice.logprobs:
                        logprobs += [each.logprob for each in choice.logprobs.content or []]
                    finished = finished or choice.finish_reason is not None
        if not finished:
            error = "the answer ends without a reason"
    except (openai.OpenAIError, httpx.HTTPError, OSError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    answer = Answer("".join(pieces), tuple(logprobs))
    return Record(ttft, time.monotonic() - start, answer, error)
