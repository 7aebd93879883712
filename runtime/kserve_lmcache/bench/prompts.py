"""Prompts out of named segments: equal names give equal tokens, so that prefixes are shared.

No text is taken from anywhere. A segment's tokens are drawn from a generator that is seeded by its
name; whoever builds the same prompt again, in any process, gets the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy

# The first ids are special tokens or bytes in every common vocabulary, and none has fewer than
# 17,000 (Llama 2 has 32,000, GPT-2 50,257).
FIRST_TOKEN = 1000
LAST_TOKEN = 16_999

# Common words, of which each is one token, or nearly one, for every common tokenizer.
_TEXT = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea kid body information back parent face others level
office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music market sense nation plan college
interest death experience effect use class control field development role effort rate heart drug
show leader light voice wife police mind price report decision son view relationship town road arm
difference value building action season society tax director position player record paper space
ground form event official matter center couple site project activity star table need court oil
situation cost industry figure street image phone data picture practice piece land product doctor
wall news test movie north love support technology step
"""
WORDS = _TEXT.split()


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt.

    Attributes:
        name: equal names give equal tokens, a longer segment beginning with the shorter one.
        tokens: its length.
    """

    name: str
    tokens: int


Prompt = Sequence[Segment]


def length(prompt: Prompt) -> int:
    """Tokens of a prompt, without what a chat template adds."""
    return sum(segment.tokens for segment in prompt)


def token_ids(prompt: Prompt, salt: str) -> list[int]:
    """The prompt as token ids, for the completions route.

    Args:
        prompt: its segments.
        salt: of a run and an endpoint: another salt gives other tokens of the same lengths, so
            that no cache that was filled before knows them.
    """
    return [
        int(token) + FIRST_TOKEN
        for segment in prompt
        for token in _drawn(segment, salt, LAST_TOKEN + 1 - FIRST_TOKEN)
    ]


def words(prompt: Prompt, salt: str, words_per_token: float = 1.0) -> str:
    """The prompt as text.

    Args:
        prompt: its segments.
        salt: as for :func:`token_ids`.
        words_per_token: how many words make one token on the endpoint's tokenizer.
    """
    text = []
    for segment in prompt:
        scaled = Segment(segment.name, max(round(segment.tokens * words_per_token), 1))
        text += [WORDS[word] for word in _drawn(scaled, salt, len(WORDS))]
    return " ".join(text)


def _drawn(segment: Segment, salt: str, below: int) -> list[int]:
    """``segment.tokens`` numbers from 0 to ``below`` - 1."""
    digest = hashlib.sha256(f"{salt}\0{segment.name}".encode()).digest()
    generator = numpy.random.Generator(numpy.random.PCG64(int.from_bytes(digest[:16], "little")))
    # By whole kibitokens: a longer segment of the same name begins with the shorter one.
    drawn: list[int] = []
    while len(drawn) < segment.tokens:
        drawn += generator.integers(below, size=1024).tolist()
    return drawn[: segment.tokens]
