"""Delivers the snapshot of a process to the server when the snapshot has changed.

An engine's process has two carriers. VLLM's stats deliver after a step. A file in the server's
directory delivers what changes between two steps: a store that ends or comes back, a write that
ends after the last step. Calls from the server are no alternative: a call to a worker wakes it, and
it then spins for one second on a core of its own (``SpinCondition``,
vllm/distributed/device_communicators/shm_broadcast.py).

On another machine than the server's there is no such directory. The stats and the handshake at the
start are the only carriers there.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kserve_lmcache.metrics.registry import REGISTRY
from kserve_lmcache.metrics.snapshots import (
    Snapshot,
    Snapshots,
    merge,
    this_process,
    write_file,
)

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # between two looks at the metrics
_LOOKS_BETWEEN_STATES = 5  # the state may change without any metric, as the reason of a failure

State = Callable[[], dict[str, Any]]


class Reporter:
    """The snapshots of this process. No method raises.

    A process has one role, or a scheduler's and a worker's.

    Args:
        directory: returns the server's directory; ``None`` where there is none.
    """

    def __init__(self, directory: Callable[[], Path | None]) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._roles: dict[str, State] = {}
        self._others: Snapshots = {}
        self._sequence = itertools.count()
        self._delivered: Snapshot = {}
        self._delivered_version = -1
        self._thread: threading.Thread | None = None

    def add(self, role: str, state: State) -> None:
        """Report a role from now on.

        Args:
            role: a field of :mod:`.snapshots`.
            state: gives the role's part of the snapshot. Does not raise.
        """
        with self._lock:
            self._roles[role] = state
            if self._directory() is not None and (
                self._thread is None or not self._thread.is_alive()
            ):
                self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
                self._thread.start()

    def remove(self, role: str) -> None:
        """Report a role no longer."""
        with self._lock:
            self._roles.pop(role, None)

    def take_changes(self) -> Snapshots | None:
        """The snapshot, which the caller delivers; ``None`` when no metric has changed."""
        with self._lock:
            version = REGISTRY.version
            if version == self._delivered_version:
                return None
            self._delivered, self._delivered_version = self._content(), version
            return self._numbered(self._delivered)

    def first(self, config: Mapping[str, Any]) -> Snapshots:
        """The snapshot at the start, with the configuration that LMCache uses."""
        with self._lock:
            return self._numbered({**self._content(), "config": config})

    def add_others(self, snapshots: Snapshots) -> None:
        """Deliver first snapshots of other processes together with this process's snapshot."""
        with self._lock:
            self._others.update(snapshots)
        self.write()

    def write(self) -> bool:
        """Write the file. Returns whether the directory exists."""
        if (directory := self._directory()) is None:
            return False
        with self._writing:  # without the other lock, which a step of the engine may wait for
            with self._lock:
                version, content = REGISTRY.version, self._content()
                snapshots = dict(self._others)  # this process may be among them
                merge(snapshots, self._numbered(content))
            try:
                write_file(directory, snapshots)
            except FileNotFoundError:
                return False
            except (OSError, TypeError, ValueError) as error:  # the stats still deliver
                logger.debug("The snapshot was not written: %s", error)
                return True
            with self._lock:
                if version >= self._delivered_version:  # no step has delivered more meanwhile
                    self._delivered, self._delivered_version = content, version
        return True

    def _run(self) -> None:
        for look in itertools.count():
            time.sleep(_LOOK_SECONDS)
            if not self._roles:
                return
            if self._is_due(with_states=look % _LOOKS_BETWEEN_STATES == 0) and not self.write():
                return

    def _is_due(self, with_states: bool) -> bool:
        with self._lock:
            if REGISTRY.version != self._delivered_version:
                return True
            return with_states and self._content() != self._delivered

    def _content(self) -> Snapshot:
        roles = {role: state() for role, state in self._roles.items()}
        return {"metrics": REGISTRY.samples(), **roles}

    def _numbered(self, content: Snapshot) -> Snapshots:
        return {this_process(): {"sequence": next(self._sequence), **content}}
