"""What the scheduler's cache tells the workers' caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Source:
    """What a load reads.

    Attributes:
        salt: of the request.
        digests: of the chunks to read.
        first: the number of the first of these chunks in the prompt.
        computed_tokens: how many tokens of the prompt vLLM has already.
        blocks: of the request, from the first.
        tiers: how many of the chunks came from each tier below the local one.
    """

    salt: str
    digests: Sequence[bytes]
    first: int
    computed_tokens: int
    blocks: Sequence[int]
    tiers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Save:
    """Chunks of a request that a step completes.

    Attributes:
        request_id: the request.
        salt: of the request.
        digests: of the chunks.
        blocks: of each chunk.
    """

    request_id: str
    salt: str
    digests: Sequence[bytes]
    blocks: Sequence[Sequence[int]]
