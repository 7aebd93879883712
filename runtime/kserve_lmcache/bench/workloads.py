"""What is asked: lists of requests that are the same for the same seed.

==========  ==================================================================  ==================
Workload    A request is                                                         What is reused
==========  ==================================================================  ==================
chat        the next message of a conversation, all before it in front of it     the history
documents   a question about one of several long documents                       the document
rag         a question behind a few chunks out of a corpus, popular ones more    leading chunks
            often (Zipf)
system      a message behind a system prompt that all requests share             the system prompt
random      a prompt of its own                                                  nothing
lengths     a new prompt, the same one again, and again on another replica,      all of it
            for each of several lengths
==========  ==================================================================  ==================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy

from kserve_lmcache.bench.prompts import Prompt, Segment, length

COLD, WARM, REMOTE = "cold", "warm local", "warm remote"
KINDS = (COLD, WARM, REMOTE)


@dataclass(frozen=True)
class Request:
    """One request of a workload.

    Attributes:
        prompt: its segments.
        output_tokens: how long the answer is.
        session: requests of one session are sent one after the other; ``None``: alone.
        turn: its number within the session, from 0.
        kind: cold, warm local or warm remote where that is known beforehand, else empty.
        replica: which of an endpoint's replicas is asked; ``None``: they take turns.
        due: seconds after the start at which a trace has it; ``None``: the arrivals say when.
        group: requests of one group may be under way together; a group waits for the end of the
            one before it.
        pause: seconds that it waits beyond that.
        index: equal ones are the same request to several endpoints; ``None``: its place in the
            list.
    """

    prompt: Prompt
    output_tokens: int
    session: int | None = None
    turn: int = 0
    kind: str = ""
    replica: int | None = None
    due: float | None = None
    group: int = 0
    pause: float = 0.0
    index: int | None = None

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return length(self.prompt)


@dataclass(frozen=True)
class Shape:
    """How large a workload is.

    Attributes:
        requests: how many in all; for ``lengths``, rounds.
        shared_tokens: of what is reused: a document, a chunk, a system prompt.
        unique_tokens: of what is not: a question, a message, a random prompt.
        output_tokens: of each answer.
        groups: how many conversations, documents or chunks there are.
        turns: messages of a conversation.
        chunks: that a request of ``rag`` takes.
        lengths: prompt tokens of the ``lengths`` workload.
        replicas: how many the endpoint has; without a second one nothing is warm remote.
        pause: seconds between the turns of several endpoints, and between the parts of
            ``lengths``. What is stored is stored behind an answer; and for a second after its last
            token vLLM's worker keeps a core busy waiting for more (``SpinCondition`` in vLLM's
            ``shm_broadcast.py``), which a server on the same machine would be measured with.
    """

    requests: int = 100
    shared_tokens: int = 1024
    unique_tokens: int = 128
    output_tokens: int = 32
    groups: int = 10
    turns: int = 5
    chunks: int = 4
    lengths: Sequence[int] = (512, 1024, 2048, 4096, 8192)
    replicas: int = 1
    pause: float = 1.5


@dataclass(frozen=True)
class Workload:
    """A way to make requests.

    Attributes:
        make: the requests of a shape and a seed.
        defaults: of its shape.
        about: one line for the help.
    """

    make: Callable[[Shape, int], list[Request]]
    defaults: Shape
    about: str


def chat(shape: Shape, seed: int) -> list[Request]:
    """Conversations of ``turns`` messages, ``groups`` of them open at a time.

    The answers in a history are made up like the messages are, so that all endpoints are asked the
    same, whatever they answer.
    """
    requests: list[Request] = []
    first = 0
    while len(requests) < shape.requests:
        opened = range(first, first + shape.groups)
        histories: dict[int, list[Segment]] = {number: [] for number in opened}
        for turn in range(shape.turns):
            for number, history in histories.items():
                name = f"chat {seed} {number} {turn}"
                history.append(Segment(f"{name} asked", shape.unique_tokens))
                requests.append(
                    Request(tuple(history), shape.output_tokens, session=number, turn=turn)
                )
                history.append(Segment(f"{name} answered", shape.output_tokens))
        first += shape.groups
    return requests[: shape.requests]


def documents(shape: Shape, seed: int) -> list[Request]:
    """Each document is asked about equally often, in random order."""
    order = numpy.random.default_rng(seed).permutation(
        numpy.arange(shape.requests) % max(shape.groups, 1)
    )
    return [
        Request(
            (
                Segment(f"document {seed} {number}", shape.shared_tokens),
                Segment(f"question {seed} {index}", shape.unique_tokens),
            ),
            shape.output_tokens,
        )
        for index, number in enumerate(order.tolist())
    ]


def rag(shape: Shape, seed: int) -> list[Request]:
    """Chunk number ``k`` is taken with a probability in proportion to ``1 / (k + 1)``."""
    generator = numpy.random.default_rng(seed)
    shares = 1 / numpy.arange(1, shape.groups + 1)
    requests = []
    for index in range(shape.requests):
        taken = generator.choice(
            shape.groups,
            size=min(shape.chunks, shape.groups),
            replace=False,
            p=shares / shares.sum(),
        )
        # In the order of rank, as a retriever gives them: the best chunk first.
        chunks = [Segment(f"chunk {seed} {each}", shape.shared_tokens) for each in taken.tolist()]
        question = Segment(f"question {seed} {index}", shape.unique_tokens)
        requests.append(Request((*chunks, question), shape.output_tokens))
    return requests


def system(shape: Shape, seed: int) -> list[Request]:
    """One system prompt for all."""
    shared = Segment(f"system {seed}", shape.shared_tokens)
    return [
        Request(
            (shared, Segment(f"message {seed} {index}", shape.unique_tokens)), shape.output_tokens
        )
        for index in range(shape.requests)
    ]


def random(shape: Shape, seed: int) -> list[Request]:
    """No prompt shares anything with another."""
    return [
        Request((Segment(f"random {seed} {index}", shape.unique_tokens),), shape.output_tokens)
        for index in range(shape.requests)
    ]


def lengths(shape: Shape, seed: int) -> list[Request]:
    """Rounds of new prompts of all lengths, the same on that replica, and on another one.

    The replicas change places from round to round, so that none of them is always the fresh one.
    """
    requests = []
    for round_ in range(shape.requests):
        for part, kind in enumerate(KINDS if shape.replicas > 1 else (COLD, WARM)):
            replica = (round_ + (kind == REMOTE)) % shape.replicas
            for place, tokens in enumerate(shape.lengths):
                group = len(KINDS) * round_ + part
                requests.append(
                    Request(
                        (Segment(f"length {seed} {round_} {tokens}", tokens),),
                        shape.output_tokens,
                        kind=kind,
                        replica=replica,
                        group=group,
                        pause=shape.pause if part else 0.0,
                        index=group * len(shape.lengths) + place,
                    )
                )
    return requests


WORKLOADS = {
    "chat": Workload(chat, Shape(), "multi-turn conversations"),
    "documents": Workload(
        documents, replace(Shape(), shared_tokens=4096, unique_tokens=64), "long-document QA"
    ),
    "rag": Workload(
        rag,
        replace(Shape(), shared_tokens=512, unique_tokens=64, groups=50),
        "questions behind chunks of a corpus",
    ),
    "system": Workload(system, Shape(), "one system prompt for all"),
    "random": Workload(random, replace(Shape(), unique_tokens=1024), "no reuse at all"),
    "lengths": Workload(
        lengths,
        replace(Shape(), requests=5, output_tokens=8),
        "cold, warm and warm on another replica, for each of --lengths",
    ),
}
