"""The sweep over prompt lengths: a new prompt, and the same prompt from each of the caches.

Requests are sent one at a time. Several endpoints take turns request by request, in random order.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from kserve_lmcache.bench.client import Endpoint
from kserve_lmcache.bench.records import COLD, KINDS, OTHER, BenchmarkError, Record
from kserve_lmcache.bench.store import BareStore

# Below are special tokens and bytes. Every common vocabulary has these ids.
_FIRST_TOKEN, _END = 1000, 17_000


@dataclass(frozen=True)
class Sweep:
    """One sweep."""

    endpoints: Sequence[Endpoint]  # connected
    lengths: Sequence[int]  # prompt tokens
    rounds: int
    extra: Mapping[str, Any]  # fields of each request
    seed: int
    pause: float  # seconds before each turn of an endpoint and each kind of prompt
    store: BareStore | None  # whose bytes are counted; nothing else may use it meanwhile

    def warm_up(self, count: int) -> None:
        """Send ``count`` requests to each replica, which no figure counts."""
        for endpoint in self.endpoints:
            for number in range(count * len(endpoint.replicas)):
                error = self._ask(endpoint, number, f"warm-up {number}", 64)["error"]
                if error is not None:
                    raise BenchmarkError(f"{endpoint.label} refuses a prompt of token ids: {error}")

    def run(self, write: Callable[[str, Record], None]) -> None:
        """Measure, and write each request to the log when it has ended."""
        begin, order = time.perf_counter(), random.Random(self.seed)  # noqa: S311
        steps = [(a, b, c) for a in range(self.rounds) for b in KINDS for c in self.lengths]
        for index, (round_, kind, length) in enumerate(steps):
            if kind != COLD and length == self.lengths[0]:
                time.sleep(self.pause)  # storing ends after the answer
            for endpoint in order.sample(self.endpoints, len(self.endpoints)):
                if kind == OTHER and len(endpoint.replicas) == 1:
                    continue
                if len(self.endpoints) > 1:
                    # A worker of vLLM keeps a core busy for one second after its last token.
                    time.sleep(self.pause)
                # The replica that computes changes from round to round.
                replica = (round_ + (kind == OTHER)) % len(endpoint.replicas)
                store = self.store if kind == OTHER else None
                before = store.sent_bytes()[1] if store else 0
                phase, started = f"{length:,} tokens, {kind}", time.perf_counter() - begin
                answer = self._ask(endpoint, replica, f"{round_} {length}", length)
                if store:
                    answer["remote_bytes"] = count = store.sent_bytes()[0] - before
                    if count:
                        # Not beside the replica's worker, which spins for a second.
                        time.sleep(self.pause)
                        answer["bare_seconds"] = store.read_seconds(count)
                place = (endpoint.label, replica, phase, index, length, started)
                write("request", Record(*place, kind=kind, **answer))

    def _ask(self, endpoint: Endpoint, number: int, name: str, length: int) -> dict[str, Any]:
        # Endpoints may share a store: each one gets other tokens.
        prompt = token_ids(f"{self.seed} {endpoint.label} {name}", length)
        body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, **self.extra}
        return endpoint.replicas[number % len(endpoint.replicas)].ask(body)


def token_ids(name: str, count: int) -> list[int]:
    """Random token ids. The same name gives the same ids in every process."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest(), "little")
    drawn: list[int] = numpy.random.default_rng(seed).integers(_FIRST_TOKEN, _END, count).tolist()
    return drawn
