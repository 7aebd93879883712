"""A worker's thread that tells the scheduler's process what comes into its tiers and goes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from kserve_lmcache.compat import vllm_events
from kserve_lmcache.compat.vllm import engine_number
from kserve_lmcache.connector.events.socket import Changes, Sender, address
from kserve_lmcache.connector.reporter import configuration_file
from kserve_lmcache.tiers.changes import TierChanges
from kserve_lmcache.tiers.guard.daemon_threads import start_supervised

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import VllmConfig

logger = init_logger(__name__)

_GATHER_SECONDS = 0.05  # in which changes are gathered for one message
_SEND_SECONDS = 0.5  # between two looks whether to end
_MOST_ENTRIES = 10_000  # of a message


class WorkerEvents:
    """Sends the changes of a worker's tiers.

    Args:
        rank: of the worker in its engine.
        where: the address of the scheduler's socket.

    Attributes:
        changes: takes the changes.
    """

    def __init__(self, rank: int, where: str) -> None:
        self.changes = TierChanges()
        self._rank = rank
        self._where = where
        self._ending = threading.Event()
        self._prepare: Callable[[], None] = lambda: None
        self._is_listed: Callable[[], bool] = lambda: True

    def start(self, prepare: Callable[[], None], is_listed: Callable[[], bool]) -> None:
        """Begin to send.

        Args:
            prepare: called first, in the thread.
            is_listed: whether all that the tiers had at the start is in :attr:`changes`.
        """
        self._prepare, self._is_listed = prepare, is_listed
        self._thread = start_supervised("kv-events", self._run, _log)

    def stop(self) -> None:
        """End the thread. Nothing waits for it."""
        self._ending.set()
        self.changes.arrived.set()

    def _run(self) -> None:
        sender = Sender(self._where)
        is_begun = listed = False
        try:
            self._prepare()
            while not self._ending.is_set():
                self.changes.arrived.wait(_SEND_SECONDS)
                self._ending.wait(_GATHER_SECONDS)
                if sender.is_connected_anew(0 if is_begun else _SEND_SECONDS):
                    self.changes.repeat()
                    self._send(sender, Changes(self._rank, [], begins=True))
                    is_begun, listed = True, False
                if not is_begun:
                    continue
                is_listed = self._is_listed()
                entries = [(*entry, present) for entry, present in self.changes.take().items()]
                for begin in range(0, len(entries), _MOST_ENTRIES):
                    self._send(sender, Changes(self._rank, entries[begin : begin + _MOST_ENTRIES]))
                if is_listed and not listed:
                    self._send(sender, Changes(self._rank, [], listed=True))
                    listed = True
        finally:
            sender.close()

    def _send(self, sender: Sender, changes: Changes) -> None:
        while not self._ending.is_set() and not sender.send(changes, _SEND_SECONDS):
            pass


def worker_events(config: VllmConfig) -> WorkerEvents | None:
    """The events of this worker; ``None`` where nobody wants them, or the road is too long."""
    if not vllm_events.are_wanted(config) or (file := configuration_file()) is None:
        return None
    if not file.parent.is_dir():
        logger.warning("The tiers of this worker are not in the KV-cache events: no shared folder")
        return None
    return WorkerEvents(config.parallel_config.rank, address(file.parent, engine_number(config)))


def _log(error: Exception) -> None:
    logger.error("The KV-cache events of the tiers failed and begin anew: %r", error)
