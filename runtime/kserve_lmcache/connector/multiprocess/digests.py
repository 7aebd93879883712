"""Digests of chunks, by which the cache server knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy

_BYTES = 32


class ChunkDigests:
    """The digests of a request's chunks, of which more and more tokens become known.

    The digest of a chunk is BLAKE2b of the digest of the chunk before, and of the chunk's tokens as
    32-bit integers. Before the first chunk is the digest of the seed.

    Args:
        seed: what the KV of given tokens depends on.
        chunk_tokens: tokens of a chunk.
    """

    def __init__(self, seed: str, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._last = hashlib.blake2b(seed.encode(), digest_size=_BYTES).digest()
        self._digests: list[bytes] = []

    def first(self, count: int, tokens: Sequence[int]) -> list[bytes]:
        """The digests of the first chunks.

        Args:
            count: of the chunks.
            tokens: of the request; at least those of ``count`` chunks.
        """
        known, size = len(self._digests), self._chunk_tokens
        if known < count:
            new = numpy.asarray(tokens[known * size : count * size], "<u4").reshape(-1, size)
            for chunk in new:
                digest = hashlib.blake2b(self._last, digest_size=_BYTES)
                digest.update(chunk.tobytes())
                self._last = digest.digest()
                self._digests.append(self._last)
        return self._digests[:count]
