"""What loading could cost at least, and from which length on it is worth it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from kserve_lmcache.bench.records import Record
from kserve_lmcache.bench.workloads import COLD, REMOTE, WARM


@dataclass(frozen=True)
class Floor:
    """Of one endpoint at one length; medians, in seconds.

    Attributes:
        endpoint: its label.
        length: prompt tokens.
        remote: TTFT of a prompt that another replica computed.
        floor: reading as many bytes from the same store, plus the TTFT of the same prompt on the
            replica that has it.
        cold: TTFT of a new prompt.
        bytes: that the store sent for it.
    """

    endpoint: str
    length: int
    remote: float
    floor: float
    cold: float | None
    bytes: int


@dataclass(frozen=True)
class BreakEven:
    """From which length on loading a prompt from the store is sooner than computing it.

    Attributes:
        endpoint: its label.
        tokens: the length; ``None`` when no length that was measured is one.
        shortest: the shortest length that was measured.
        longest: the longest one.
        crossed: whether computing is sooner at the shortest, so that the length was passed.
    """

    endpoint: str
    tokens: float | None
    shortest: int
    longest: int
    crossed: bool

    @property
    def says(self) -> str:
        """In words."""
        if self.tokens is None:
            return f"computing is sooner at all lengths up to {self.longest:,} tokens"
        if not self.crossed:
            return f"loading is sooner at all lengths from {self.shortest:,} tokens on"
        return f"loading is sooner from about {self.tokens:,.0f} tokens on"


def medians(records: Iterable[Record], kind: str) -> dict[int, float]:
    """The median TTFT by length, of requests of a kind, in seconds; shortest first.

    A warm request that found nothing in a cache counts: it is what its client waited.
    """
    times: dict[int, list[float]] = {}
    for record in records:
        if record.kind == kind and record.error is None and record.ttft is not None:
            times.setdefault(record.length, []).append(record.ttft)
    return {length: median(times[length]) for length in sorted(times)}


def floors(records: Sequence[Record]) -> list[Floor]:
    """For each endpoint and length where the store's bytes were seen."""
    found = []
    for endpoint in dict.fromkeys(record.endpoint for record in records):
        mine = [record for record in records if record.endpoint == endpoint]
        cold, warm, remote = (medians(mine, kind) for kind in (COLD, WARM, REMOTE))
        for length in remote:
            seen = [
                (record.bare_seconds, record.remote_bytes or 0)
                for record in mine
                if record.kind == REMOTE and record.length == length and record.bare_seconds
            ]
            if seen and length in warm:
                bare, sent = (median(each) for each in zip(*seen, strict=True))
                floor = float(bare) + warm[length]
                found.append(
                    Floor(endpoint, length, remote[length], floor, cold.get(length), int(sent))
                )
    return found


def break_evens(records: Sequence[Record]) -> list[BreakEven]:
    """For each endpoint with cold and warm remote requests."""
    found = []
    for endpoint in dict.fromkeys(record.endpoint for record in records):
        mine = [record for record in records if record.endpoint == endpoint]
        cold, remote = medians(mine, COLD), medians(mine, REMOTE)
        lengths = [length for length in cold if length in remote]
        if lengths:
            ratios = [remote[length] / cold[length] for length in lengths]
            tokens, crossed = crossing(lengths, ratios)
            found.append(BreakEven(endpoint, tokens, lengths[0], lengths[-1], crossed))
    return found


def crossing(lengths: Sequence[int], ratios: Sequence[float]) -> tuple[float | None, bool]:
    """Where the ratio falls below 1 and stays there; straight lines between the lengths.

    Returns:
        The length, ``None`` when the last ratio is 1 or more; and whether there is a longer
        ratio of 1 or more before it.
    """
    if ratios[-1] >= 1:
        return None, False
    for place in range(len(ratios) - 2, -1, -1):
        if ratios[place] >= 1:
            share = (ratios[place] - 1) / (ratios[place] - ratios[place + 1])
            return lengths[place] + share * (lengths[place + 1] - lengths[place]), True
    return float(lengths[0]), False
