"""Asks the workers to do something with their caches (:mod:`kserve_lmcache.connector.control`)."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kserve_lmcache.connector.control import socket_path
from kserve_lmcache.connector.steering import Answer
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.identity.tag import Selection, Tag
from kserve_lmcache.tiers.guard.listing import Usage

# Longer than a worker's own deadlines for its tiers, one after another: 30 seconds for each call.
_SECONDS = 300.0
_MAX_ANSWER = 256 * 2**20  # bytes


class CacheControl:
    """The workers of an engine.

    Args:
        directory: the server's, where the workers listen.
        workers: their number.
    """

    def __init__(self, directory: Path, workers: int) -> None:
        self._paths = [socket_path(directory, rank) for rank in range(workers)]

    async def ask(self, name: str, **arguments: Any) -> list[Answer]:
        """The answer of each worker, by rank.

        Args:
            name: of a method of :class:`~kserve_lmcache.connector.steering.Steering`.
            arguments: of the method.

        Raises:
            RefusedError: a worker does not listen, fails, or does not answer in time.
        """
        if isinstance(selection := arguments.get("selection"), Selection):
            arguments["selection"] = asdict(selection)
        message = json.dumps({"name": name, "arguments": arguments}).encode() + b"\n"
        if missing := [rank for rank, path in enumerate(self._paths) if not path.exists()]:
            raise RefusedError(
                HTTPStatus.NOT_IMPLEMENTED,
                f"worker {missing[0]} cannot be asked: it is on another machine, or LMCache does "
                "not work in it",
            )
        return list(await asyncio.gather(*(self._asked(path, message) for path in self._paths)))

    async def _asked(self, path: Path, message: bytes) -> Answer:
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(path), limit=_MAX_ANSWER)
                try:
                    writer.write(message)
                    await writer.drain()
                    line = await reader.readline()
                finally:
                    writer.close()
            said = json.loads(line)
        except (OSError, TimeoutError, ValueError) as error:
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"a worker did not answer ({type(error).__name__})",
            ) from error
        if "error" in said:
            raise RefusedError(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                f"a worker failed ({said['error']}); the server's log has more",
            )
        answer: Answer = said["answer"]
        return answer


Usages = dict[Tag, dict[str, Usage]]


def usages(answers: Iterable[Answer]) -> tuple[Usages, dict[str, str]]:
    """The usage of all workers together, by tag and tier; and the tiers that failed, with why."""
    found: Usages = defaultdict(dict)
    places = set()
    for answer in answers:
        for tier, told in answer.items():
            place = (tier, told.get("place"))
            if "tags" not in told or place in places:  # another worker's answer has the same files
                continue
            places.add(place)
            for salt, tenant, adapter, chunks, size, oldest in told["tags"]:
                usage = found[Tag(salt, tenant, adapter)].setdefault(tier, Usage())
                usage.merge(Usage(chunks, size, oldest))
    return found, failures(answers)


def counts(answers: Sequence[Answer], name: str = "chunks") -> dict[str, int]:
    """A count of all workers together, by tier."""
    found: dict[str, int] = {}
    for answer in answers:
        for tier, told in answer.items():
            if name in told:
                found[tier] = found.get(tier, 0) + int(told[name])
    return found


def failures(answers: Iterable[Answer]) -> dict[str, str]:
    """The tiers that failed in a worker, with why."""
    told: Iterable[tuple[str, Mapping[str, Any]]] = (
        each for answer in answers for each in answer.items()
    )
    return {tier: str(each["error"]) for tier, each in told if "error" in each}
