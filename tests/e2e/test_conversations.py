"""Two replicas and one Redis answer random conversations as one server without a cache does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.answers import Answer, answer_of
from tests.support.options import option
from tests.support.server import MODEL, Server, cached_tokens, engine_environment, running
from tests.support.stores import Store

CONVERSATIONS = option("--conversations")
TURNS = 4
SEED = 7
CHUNK = 256
# In bfloat16 a tie between two tokens may turn with the shape in which they are computed.
EXACT = "--dtype=float32"

Messages = list[dict[str, str]]


@dataclass
class Turn:
    """One request, its answer, and what came from a cache."""

    messages: Messages
    answer: Answer
    cached: int
    allowed: int


@dataclass
class Traffic:
    """Conversations with shared beginnings, branches, and edits in their middle."""

    chance: random.Random
    open: list[Messages] = field(default_factory=list)
    begun: list[Messages] = field(default_factory=list)

    def begin(self) -> None:
        if self.begun and self.chance.random() < 0.3:
            earlier = self.chance.choice(self.begun)
            kept = self.chance.randrange(1, len(earlier) + 1, 2)
            self.open.append(earlier[:kept])
        else:
            number = self.chance.randrange(3)
            rules = " ".join(f"Rule {number}{line}: be brief." for line in range(35))
            self.open.append([{"role": "system", "content": rules}])

    def next(self) -> Messages:
        """A conversation whose last message is a user's new one."""
        messages = self.chance.choice(self.open)
        if len(messages) > 3 and self.chance.random() < 0.2:
            edited = self.chance.randrange(1, len(messages), 2)
            messages[edited] = self.user()
        messages.append(self.user())
        return messages

    def close(self, messages: Messages, answer: str) -> None:
        messages.append({"role": "assistant", "content": answer})
        if len(messages) >= 2 * TURNS:
            self.open.remove(messages)
        self.begun.append(list(messages))

    def user(self) -> dict[str, str]:
        words = " ".join(f"w{self.chance.randrange(1000)}" for _ in range(40))
        return {"role": "user", "content": f"What of {words}?"}


class ExactTree:
    """What a cache of whole chunks could have, at most, of each prompt."""

    def __init__(self) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
        self._known: set[tuple[int, ...]] = set()

    def ask(self, messages: Messages) -> int:
        tokens = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        prefixes = [tuple(tokens[:end]) for end in range(CHUNK, len(tokens) + 1, CHUNK)]
        found = 0
        for prefix in prefixes:
            if prefix not in self._known:
                break
            found = len(prefix)
        self._known.update(prefixes)
        return min(found, len(tokens) - 1)


def ask(server: Server, messages: Messages) -> tuple[Answer, int]:
    completion = server.client().chat.completions.create(
        model=server.name, messages=messages, temperature=0, max_tokens=12, seed=0, logprobs=True
    )
    return answer_of(completion), cached_tokens(completion)


def converse(replicas: list[Server]) -> list[Turn]:
    traffic, tree = Traffic(random.Random(SEED)), ExactTree()
    turns = []
    for _ in range(CONVERSATIONS):
        traffic.begin()
        while len(traffic.open) > 3 or (traffic.open and traffic.chance.random() < 0.7):
            messages = traffic.next()
            allowed = tree.ask(messages)
            answer, cached = ask(traffic.chance.choice(replicas), messages)
            turns.append(Turn(list(messages), answer, cached, allowed))
            traffic.close(messages, answer.text)
    return turns


@pytest.mark.timeout(600 + 20 * CONVERSATIONS)
def test_random_conversations(
    logs: Path, redis_store: Store, cut_model: Path, reference: Server
) -> None:
    environ = engine_environment(
        LMCACHE_REMOTE_URL=redis_store.url, LMCACHE_MAX_LOCAL_CPU_SIZE="1.0"
    )
    # What the whole model would store of 200 conversations is 12 GB.
    model = (f"--model_id={cut_model}",)
    with (
        running(logs / "one.log", EXACT, environ=environ, model=model) as one,
        running(logs / "two.log", EXACT, environ=environ, model=model) as two,
    ):
        turns = converse([one, two])
    for turn in turns:
        right, cached = ask(reference, turn.messages)
        assert cached == 0
        assert turn.answer.is_like(right), (turn.answer, right)
    allowed = sum(turn.allowed for turn in turns)
    found = sum(min(turn.cached, turn.allowed) for turn in turns)
    print(
        f"\n{len(turns)} requests, {found} of {allowed} tokens from a cache: {found / allowed:.3f}"
    )
    assert allowed > 0
    assert found >= 0.9 * allowed
