"""How long the remote tier may take, and how much it may hold."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Of one worker's remote tier; seconds and bytes.

    Attributes:
        connect: seconds for a connection, with TLS and login.
        lookup: seconds in which the store must say what it has of a prompt. A prompt that is
            not cached pays them at the worst, and an interactive user does not see 50 ms.
        load: seconds for all chunks of a prompt; less when computing them would take less.
        write: seconds for one batch, which no request waits for.
        batch_bytes: written, or asked for and not yet read, at a time.
        queue_bytes: of chunks that wait to be written. They stay in the local tier meanwhile.
        ttl: seconds that a chunk stays after its last use, 0 for as long as the store likes.
    """

    connect: float = 1.0
    lookup: float = 0.05
    load: float = 2.0
    write: float = 2.0
    batch_bytes: int = 16 * MIB
    queue_bytes: int = 256 * MIB
    ttl: int = 24 * 60 * 60
