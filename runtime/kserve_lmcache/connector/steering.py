"""What a worker's cache does for a person, beside the engine's steps.

The server asks for it by messages (:mod:`.control`). Their names are those of the methods here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kserve_lmcache.identity.tag import Selection

# An answer of one worker: by tier, what was found or done there, or ``error`` and why not.
Answer = Mapping[str, Mapping[str, Any]]


class Steering(Protocol):
    """Called by threads of its own, several at a time. Every method may raise and may wait."""

    def usage(self, selection: Selection) -> Answer:
        """What each tier has: ``tags``, of each its parts, chunks, bytes and the oldest's age.

        ``place`` tells tiers of workers apart: workers with the same place share the tier.
        """

    def delete(self, selection: Selection) -> Answer:
        """Delete chunks from every tier. ``chunks`` is the number of those that were there."""

    def delete_prompt(self, tokens: Sequence[int], tag: str) -> Answer:
        """Delete the chunks of a prompt from every tier.

        Args:
            tokens: of the prompt.
            tag: of the request.
        """

    def prefetch(self, tokens: Sequence[int], tag: str) -> Answer:
        """Load the whole chunks of a prompt into the local tier from the tiers below.

        ``chunks`` of the local tier is the number of those that it has then, ``of`` that of all.
        """

    def pin(self, tokens: Sequence[int], tag: str, seconds: float, reason: str = "") -> Answer:
        """Keep the whole chunks of a prompt in each tier that has them.

        ``chunks`` and ``bytes`` are what is kept, ``of`` the number of all chunks. ``is_full`` says
        that no more may be pinned.

        Args:
            tokens: of the prompt.
            tag: of the request.
            seconds: from now on. With 0 they are kept no longer.
            reason: a name of this pin, by which :meth:`unpin` takes it back.
        """

    def unpin(self, tokens: Sequence[int], tag: str, reason: str) -> Answer:
        """Take back a pin. What was pinned before stays so.

        Args:
            tokens: of the prompt.
            tag: of the request.
            reason: as it was given to :meth:`pin`.
        """
