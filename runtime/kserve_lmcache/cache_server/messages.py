"""The messages between the engine's processes and a cache server."""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True):
    """The objects of one worker.

    Attributes:
        model: names the model and the form of the bytes.
        rank: of the worker, and of how many.
        size: bytes of an object.
        salt: what keeps objects of one model apart.
    """

    model: str
    rank: tuple[int, int]
    size: int
    salt: str = ""


class Hello(msgspec.Struct, frozen=True):
    """What a process of the engine says once a second.

    Attributes:
        prefill_rate: tokens a second that the engine computes of prompts; ``None`` where unknown.
    """

    prefill_rate: float | None = None


class Welcome(msgspec.Struct, frozen=True):
    """What the server is.

    Attributes:
        incarnation: of the server, which no other has.
        segment: the name of its shared memory.
        size: bytes of the shared memory.
        chunk_tokens: tokens of a chunk.
        fetch_seconds: how long a fetch from the tiers below may take; 0 without tiers.
    """

    incarnation: str
    segment: str
    size: int
    chunk_tokens: int
    fetch_seconds: float


class Lookup(msgspec.Struct, frozen=True):
    """Which chunks of a prompt are there?

    Attributes:
        rows: a row for each worker.
        digests: of the chunks, from the first of the prompt.
        needed_from: how many of the first chunks vLLM has. They are not fetched from tiers below.
    """

    rows: list[Row]
    digests: list[bytes]
    needed_from: int = 0


class Found(msgspec.Struct, frozen=True):
    """The answer to a :class:`Lookup` or to a :class:`Wait`.

    Attributes:
        local: how many chunks, counted from the first, the shared memory had.
        chunks: how many chunks, counted from ``needed_from``, it has now.
        sources: how many of ``chunks`` were fetched, by tier.
        ticket: to be waited for, while tiers below are asked; 0 when the answer is final.
    """

    local: int
    chunks: int
    sources: dict[str, int]
    ticket: int = 0


class Wait(msgspec.Struct, frozen=True):
    """Wait for a lookup.

    Attributes:
        ticket: of the lookup.
        seconds: at most.
    """

    ticket: int
    seconds: float


class Objects(msgspec.Struct, frozen=True):
    """Some objects of a worker."""

    row: Row
    digests: list[bytes]


class Slots(msgspec.Struct, frozen=True):
    """Where objects are in the shared memory.

    Attributes:
        offsets: -1 for an object that was not reserved.
        dropped: how many objects found no room.
    """

    offsets: list[int]
    dropped: int = 0


class Proofs(msgspec.Struct, frozen=True):
    """What the tiers below gave back.

    Attributes:
        tiers: in words, by tier.
        wrong: why a tier must not be used; empty where none is wrong.
    """

    tiers: dict[str, str]
    wrong: str = ""


class Nothing(msgspec.Struct, frozen=True):
    """There is nothing to say."""


# By the name of the call.
CALLS: dict[str, tuple[type[msgspec.Struct], type[msgspec.Struct]]] = {
    "hello": (Hello, Welcome),
    "lookup": (Lookup, Found),
    "wait": (Wait, Found),
    "reserve": (Objects, Slots),
    "complete": (Objects, Nothing),
    "withdraw": (Objects, Nothing),
    "read": (Objects, Slots),
    "release": (Objects, Nothing),
    "discard": (Objects, Nothing),
    "prove": (Nothing, Proofs),
}
