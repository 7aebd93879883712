"""One worker's remote tier or disk tier."""

from __future__ import annotations

import functools
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.bars import Bars
from kserve_lmcache.tiers.guard.breaker import SLOW, Breaker
from kserve_lmcache.tiers.guard.codec import Buffer, Layout
from kserve_lmcache.tiers.guard.corrupt_keys import CorruptKeys
from kserve_lmcache.tiers.guard.counters import Counters
from kserve_lmcache.tiers.guard.deadline_executor import DeadlineExecutor
from kserve_lmcache.tiers.guard.load import Load, MakeRoom
from kserve_lmcache.tiers.guard.load_cost import LoadCost
from kserve_lmcache.tiers.guard.proof import prove
from kserve_lmcache.tiers.guard.quota import StoreQuota
from kserve_lmcache.tiers.guard.read_counts import add_reads
from kserve_lmcache.tiers.guard.steering import Steering
from kserve_lmcache.tiers.guard.store import CallKind, Store, StoreError
from kserve_lmcache.tiers.guard.writer import OnPresence, Writer, seal

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Calls that run at a time, each with a connection of its own. Loads that share a link slow each
# other down; a load's deadline, four times its usual duration, allows for as many as these.
LOADS = 3
LOOKUPS = 4
_THREADS: dict[CallKind, int] = {"load": LOADS, "lookup": LOOKUPS}

_MAX_BUGS = 100  # that are logged
_WARNING_PAUSE = 60.0  # seconds until a frequent warning is logged again


class Tier:
    """Looks up, loads and stores chunks. No method raises or waits beyond a deadline.

    Args:
        address: of the store, as logs and reports may show it.
        make_store: makes a client of the store for one kind of call.
        limits: deadlines and sizes.
        chunk_tokens: tokens of a full chunk.
        chunk_bytes: bytes of a full chunk.
        name: of the tier in metrics and logs (:data:`~kserve_lmcache.metrics.table.TIERS`).
        extra_report: returns further entries of the report.

    Attributes:
        counters: what has happened in the tier.
        load_cost: decides which loads are worth their time.
        bars: chunks that are not taken, because they are being deleted.
        steering: lists and deletes chunks for a person.
        address: of the store, as given.
        name: as given.
        chunk_bytes: as given; may be set when it is known.
    """

    def __init__(
        self,
        address: str,
        make_store: Callable[[CallKind], Store],
        limits: TierLimits,
        chunk_tokens: int,
        chunk_bytes: int,
        name: str = "remote",
        extra_report: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.counters = Counters(name)
        self.load_cost = LoadCost(limits.lookup)
        self.bars = Bars()
        self._lock = threading.Lock()
        self._loading = 0  # loads that run
        self.address = address
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self.chunk_bytes = chunk_bytes
        self.name = name
        self._title = f"{name} tier {address}"
        self._extra_report = extra_report
        self._up = metric("up", tier=name)
        self._up.set(0)
        self._down_reason = "not connected yet"
        self._logged_bugs: set[tuple[str, str]] = set()  # type and line of code
        self._next_warning: dict[str, float] = {}
        self._corrupt_keys = CorruptKeys()
        self._executors: dict[CallKind, DeadlineExecutor] = {
            kind: DeadlineExecutor(
                f"{name}-{kind}", functools.partial(make_store, kind), _THREADS.get(kind, 1)
            )
            for kind in get_args(CallKind)
        }
        self._breaker = Breaker(
            self._probe,
            self._on_up,
            self._on_down,
            self._on_probe_failure,
            self.log_bug,
            f"{name}-probe",
        )
        self._writer = Writer(
            functools.partial(self._call, "write"),
            self._breaker,
            limits,
            self.counters,
            self._corrupt_keys,
            name,
            self._on_full,
            self.log_bug,
            lambda key: key in self.bars,
        )
        self.steering = Steering(name, make_store, self._writer)
        self._quota: StoreQuota | None = None

    @property
    def is_loading(self) -> bool:
        """Whether a load runs."""
        return self._loading > 0

    def watch(self, on_presence: OnPresence) -> None:
        """Tell of keys, and whether the store has them; ``None`` where that is not known."""
        self._writer.on_presence = on_presence

    def state(self) -> tuple[bool, float]:
        """Returns whether the store may be called, and since when, in seconds of Unix time."""
        return self._breaker.is_closed, self._breaker.since

    def sizes(self, keys: Sequence[str]) -> list[int] | None:
        """Returns the sizes of values, or ``None`` where the store does not answer in time.

        No request waits for it, so a failure says nothing about the store.
        """
        try:
            return self._executors["lookup"].call(
                lambda store: store.sizes(keys), self._limits.connect
            )
        except StoreError:
            return None

    @property
    def fetch_seconds(self) -> float:
        """How long a lookup and a load may take together."""
        return self._limits.lookup + self._limits.load

    def lookup(self, keys: Sequence[str]) -> int:
        """Returns how many of ``keys``, counted from the first, are stored and worth loading."""
        if not keys:
            return 0
        if not self._breaker.is_closed:
            self.counters.add("lookups_skipped")
            return 0
        self.counters.add("lookups")
        sizes = self._call("lookup", lambda store: store.sizes(keys), self._limits.lookup) or ()
        found = 0
        for present in (True, False):
            told = [key for key, size in zip(keys, sizes, strict=False) if bool(size) == present]
            self._writer.on_presence(told, present)
        for key, size in zip(keys, sizes, strict=False):
            if size == 0 or key in self._corrupt_keys:
                break
            found += 1
        self.counters.add("lookup_hits", found)
        self.counters.add("lookup_misses", len(keys) - found)
        if found and not self.load_cost.is_worth(*self._amount(found)):
            self.counters.add("loads_skipped")
            if self.load_cost.begin_measurement():
                threading.Thread(
                    target=self._measure,
                    args=(keys[:found],),
                    name=f"{self.name}-measure",
                    daemon=True,
                ).start()
            return 0
        return found

    def _measure(self, keys: Sequence[str]) -> None:
        """Reads chunks that no request waits for, because a slow store may have become faster.

        A read that fails or exceeds the deadline of a load changes nothing.
        """
        memory = memoryview(bytearray(self.chunk_bytes))
        load = Load(keys, lambda _, size: (True, memory[:size]), lambda _: None, self.chunk_bytes)
        deadline = self.load_cost.deadline(*self._amount(len(keys)), self._limits.load)
        began = time.monotonic()
        try:
            self._executors["load"].call(load.run, deadline)
        except StoreError:
            return
        except Exception as error:
            self._on_bug("load", error)
            return
        if len(load.finish()) == len(keys):
            self.load_cost.measured(load.bytes, time.monotonic() - began)

    def load(
        self,
        keys: Sequence[str],
        make_room: MakeRoom[T],
        release: Callable[[T], None],
    ) -> list[T]:
        """Loads chunks from the first of ``keys`` up to one that is missing, corrupt or late.

        The arguments are those of :class:`.load.Load`.

        Returns:
            The rooms that are filled.
        """
        if not keys or not self._breaker.is_closed:
            return []
        with self._lock:
            self._loading += 1
        try:
            return self._loaded(keys, make_room, release)
        finally:
            with self._lock:
                self._loading -= 1

    def _loaded(
        self,
        keys: Sequence[str],
        make_room: MakeRoom[T],
        release: Callable[[T], None],
    ) -> list[T]:
        self.counters.add("loads")
        load = Load(keys, make_room, release, self.chunk_bytes)
        deadline = self.load_cost.deadline(*self._amount(len(keys)), self._limits.load)
        began = time.monotonic()
        self._call("load", load.run, deadline)
        taken = load.finish()
        seconds = time.monotonic() - began
        self.counters.add("chunks_read", len(taken))
        add_reads(self.name, len(taken))
        self.counters.add("read_bytes", load.bytes)
        metric("load_seconds", tier=self.name).observe(seconds)
        self.load_cost.loaded(load.bytes, seconds)
        if load.outcome:
            self.counters.add(load.outcome)
            self._writer.on_presence([keys[len(taken)]], False)
        else:
            self.counters.add("chunks_late", len(keys) - len(taken))
        if load.corruption:
            self._on_corrupt(keys[len(taken)], load.corruption)
        self._writer.keep(keys[: len(taken)])
        return taken

    def store(self, key: str, layout: Layout, payload: Buffer, release: Callable[[], None]) -> None:
        """Queues a chunk for writing. The arguments are those of :func:`.writer.seal`."""
        try:
            chunk = seal(key, layout, payload, release)
        except ValueError as error:
            release()
            self.log_bug(error)
            return
        if self._quota is not None and not self._quota.admits(key, chunk.size):
            release()
            self.counters.add("quota_refused")
            return
        self._writer.put(chunk)

    def set_quota(self, worker: Callable[[], str], max_bytes: int) -> None:
        """Let no tenant fill more than so much of the store; see :class:`.quota.StoreQuota`."""
        self._quota = StoreQuota(self.steering, worker, max_bytes, self.counters, self.log_bug)

    def delete(self, key: str) -> None:
        """Deletes a chunk in the background."""
        self._writer.delete([key])

    def prove(self, layout: Layout, payload: Buffer, wait: float) -> str:
        """Proves that the store gives back what it is given.

        Args:
            layout: of the payload.
            payload: any bytes.
            wait: seconds to wait for the first answer of the store.

        Returns:
            What happened, in words.

        Raises:
            WrongValueError: the store returned other bytes.
        """
        if not self._breaker.wait_closed(wait):
            return f"not up ({self._down_reason})"
        return prove(self._call, self._limits, layout, payload)

    def close(self) -> None:
        """Writes the queue, if that takes little time, and closes the store."""
        self._writer.close()
        self._breaker.stop()
        self.steering.close()
        if self._quota is not None:
            self._quota.close()
        for executor in self._executors.values():
            executor.close()

    def report(self) -> dict[str, Any]:
        """Returns the tier's state and counters, as plain values."""
        up = self._breaker.is_closed
        return {
            "name": self.address,
            "up": up,
            "since": self._breaker.since,
            "reason": "" if up else self._down_reason,
            "queue_bytes": self._writer.queued_bytes,
            "queue_bytes_max": self._writer.max_queued_bytes,
            "read_bytes_per_second": self.load_cost.bytes_per_second,
            "prefill_tokens_per_second": self.load_cost.prefill.tokens_per_second,
            **self.counters.snapshot(),
            **self._extra_report(),
        }

    def _amount(self, chunks: int) -> tuple[int, int]:
        """Returns the tokens and the bytes of some chunks."""
        return chunks * self._chunk_tokens, chunks * self.chunk_bytes

    def _call(self, kind: CallKind, operation: Callable[[Store], T], seconds: float) -> T | None:
        began = time.monotonic()
        try:
            result = self._executors[kind].call(operation, seconds)
        except StoreError as error:
            self.counters.add("failures")
            self._breaker.failed(kind, str(error))
        except Exception as error:
            self._on_bug(kind, error)
        else:
            # The duration of a load depends on its size more than on the store.
            share = (time.monotonic() - began) / seconds if kind == "lookup" else None
            self._breaker.succeeded(kind, share)
            return result
        return None

    def _probe(self) -> None:
        """Connects every client, and checks that the store answers as fast as lookups need."""
        for executor in self._executors.values():
            executor.call(lambda store: store.ping(), self._limits.connect)
        self._executors["lookup"].call(lambda store: store.ping(), self._limits.lookup * SLOW)

    def _on_up(self) -> None:
        self.counters.add("connects")
        self._up.set(1)
        start_up_timing.reached(f"{self.name} tier{start_up_timing.ANSWERS}")
        logger.info("The %s answers", self._title)

    def _on_down(self, reason: str) -> None:
        for executor in self._executors.values():  # an idle one may have a dead connection
            executor.renew()
        self.counters.add("opened")
        self._up.set(0)
        self._down_reason = reason
        logger.warning("The %s is skipped until it answers again: %s", self._title, reason)

    def _on_probe_failure(self, reason: str) -> None:
        if reason != self._down_reason:
            self._down_reason = reason
            logger.warning("The %s does not answer: %s", self._title, reason)

    def _on_full(self, reason: str) -> None:
        self._warn_rarely("The %s is full and drops new chunks: %s", self._title, reason)

    def _on_corrupt(self, key: str, check: str) -> None:
        self._corrupt_keys.add(key)
        self._writer.delete([key])
        self._warn_rarely(
            "A chunk of the %s is corrupt and is deleted: %s (%d corrupt chunks so far)",
            self._title,
            check,
            self.counters["chunks_corrupt"],
        )

    def _warn_rarely(self, message: str, *values: object) -> None:
        now = time.monotonic()
        if now >= self._next_warning.get(message, 0.0):
            self._next_warning[message] = now + _WARNING_PAUSE
            logger.warning(message, *values)

    def _on_bug(self, kind: CallKind, error: Exception) -> None:
        """Logs an exception that no store should raise, and counts it as a failure."""
        self.log_bug(error)
        self._breaker.failed(kind, f"{type(error).__name__}: {error}")

    def log_bug(self, error: Exception) -> None:
        """Counts an unexpected exception. Logs the first one of each line of code."""
        self.counters.add("exceptions")
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        bug = (type(error).__name__, place)
        if bug not in self._logged_bugs and len(self._logged_bugs) < _MAX_BUGS:
            self._logged_bugs.add(bug)
            trace = "".join(traceback.format_exception(error))
            logger.error("Unexpected exception in the %s:\n%s", self._title, trace)
