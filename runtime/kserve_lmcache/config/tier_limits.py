"""The limits of a tier: deadlines and sizes."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class TierLimits:
    """Deadlines (in seconds) and sizes (in bytes) of one worker's remote or disk tier.

    Attributes:
        connect: deadline of a connection, with TLS and login.
        lookup: deadline of a lookup. A request whose prompt is not cached waits for the lookup,
            and a user does not notice 50 ms.
        load: deadline for all chunks of a prompt; less where computing the chunks takes less.
        write: deadline of a batch of writes. No request waits for a write.
        batch_bytes: size of a batch of writes, and of the values that a load has requested and
            not yet read.
        queue_bytes: size of the chunks that wait to be written. The chunks stay in the local
            tier meanwhile.
        ttl: seconds that a chunk stays after its last use; 0 for as long as the store keeps it.
    """

    connect: float = 1.0
    lookup: float = 0.05
    load: float = 2.0
    write: float = 2.0
    batch_bytes: int = 16 * MIB
    queue_bytes: int = 256 * MIB
    ttl: int = 24 * 60 * 60
