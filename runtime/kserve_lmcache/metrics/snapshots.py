"""Snapshots: the state and the metrics of the engine's processes, on their way to the server.

A snapshot is cumulative, so only the newest one of a process counts. Its fields, of which a role's
are there in a process that has the role:

- ``sequence``: grows with each snapshot of the process;
- ``metrics``: the samples of the process's registry;
- ``scheduler``: ``failure``, why LMCache does not work there (empty when LMCache works);
- ``worker``: ``rank``, ``failure``, ``tiers`` (the reports of the tiers by name), ``proof``
  (what was proven at the start, in words), ``form`` (what the
  scheduler's process has to know of the worker's KV cache), and ``moments`` of the process's start;
- ``cache_server``: ``tiers`` (the reports of the tiers by name); ``None`` once it has ended;
- ``config``: the configuration that the worker's LMCache uses. Only a worker's first snapshot has
  this field.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Snapshot = dict[str, Any]
Snapshots = dict[str, Snapshot]  # by process

NOT_PROVEN = "not proven"  # begins what is said of a proof that could not be made
_FILE = "snapshots-{}.json"


def this_process() -> str:
    """The name of this process among those of all machines."""
    return f"{socket.gethostname()}/{os.getpid()}"


def merge(into: Snapshots, more: Mapping[str, Snapshot]) -> None:
    """Add ``more``. The newest snapshot of a process wins; fields that only the other has stay."""
    for process, snapshot in more.items():
        known = into.get(process, {})
        if known.get("sequence", -1) < snapshot["sequence"]:
            into[process] = {**known, **snapshot}
        else:
            into[process] = {**snapshot, **known}


def workers(snapshots: Mapping[str, Snapshot]) -> list[Snapshot]:
    """The snapshots of workers, by rank."""
    found = [each for each in snapshots.values() if "worker" in each]
    return sorted(found, key=lambda each: int(each["worker"]["rank"]))


def write_file(directory: Path, snapshots: Mapping[str, Snapshot]) -> None:
    """Replace this process's file.

    Raises:
        FileNotFoundError: the directory does not exist: the server has ended, or runs on another
            machine.
        OSError: the file cannot be written.
    """
    path = directory / _FILE.format(os.getpid())
    new = path.with_suffix(".new")
    new.write_text(json.dumps(snapshots, default=str), "utf-8")
    new.replace(path)


def end_file(directory: Path, pid: int, is_gauge: Callable[[str], bool]) -> None:
    """Take the state of a process that was killed out of its file. What it counted stays.

    Args:
        directory: that has the file.
        pid: of the process.
        is_gauge: whether a metric of this name is a state.

    Raises:
        OSError: the file cannot be written.
    """
    path = directory / _FILE.format(pid)
    if not path.exists():
        return
    found: Snapshots = json.loads(path.read_text("utf-8"))
    for snapshot in found.values():
        snapshot["sequence"] += 1
        snapshot["metrics"] = [each for each in snapshot["metrics"] if not is_gauge(each[0])]
        snapshot["cache_server"] = None
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found), "utf-8")
    new.replace(path)


def read_files(directory: Path) -> Snapshots:
    """The newest snapshots in the files of all processes."""
    found: Snapshots = {}
    for path in directory.glob(_FILE.format("*")):
        merge(found, json.loads(path.read_text("utf-8")))
    return found


class SnapshotStore:
    """The newest snapshot of each process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: Snapshots = {}

    def add(self, snapshots: Mapping[str, Snapshot]) -> None:
        """Add snapshots, new ones or old ones."""
        with self._lock:
            merge(self._snapshots, snapshots)

    def all(self) -> Snapshots:
        """The newest snapshots."""
        with self._lock:
            return dict(self._snapshots)

    def clear(self) -> None:
        """Forget all processes."""
        with self._lock:
            self._snapshots.clear()


# What vLLM's logger of metrics received in this process; vLLM creates the logger by a class.
RECEIVED = SnapshotStore()
