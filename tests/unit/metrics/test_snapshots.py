"""The newest snapshot of each process counts, whatever way it came."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.metrics import snapshots
from kserve_lmcache.metrics.snapshots import (
    SnapshotStore,
    merge,
    read_files,
    this_process,
    workers,
    write_file,
)


def of(sequence: int, **fields: Any) -> dict[str, Any]:
    return {"sequence": sequence, "metrics": [], **fields}


def test_the_newest_wins_in_any_order_and_keeps_what_only_others_have() -> None:
    parts = [
        {"a": of(0, worker={"rank": 0}, config={"chunk_size": 64}), "b": of(5)},
        {"a": of(1, worker={"rank": 0, "failure": "gone"})},
        {"b": of(4), "c": of(0)},
    ]
    for order in itertools.permutations(parts):
        found: dict[str, Any] = {}
        for part in order:
            merge(found, part)
        assert found == {
            "a": of(1, worker={"rank": 0, "failure": "gone"}, config={"chunk_size": 64}),
            "b": of(5),
            "c": of(0),
        }


def test_workers_are_in_the_order_of_their_ranks() -> None:
    found = {str(rank): of(0, worker={"rank": rank}) for rank in (10, 2, 0)}
    found["scheduler"] = of(0, scheduler={"failure": ""})
    assert [each["worker"]["rank"] for each in workers(found)] == [0, 2, 10]


def test_files_of_all_processes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_files(tmp_path) == {}
    write_file(tmp_path, {"a": of(0)})
    write_file(tmp_path, {"a": of(2), "b": of(0, config={"chunk_size": 64, "other": Path("x")})})
    monkeypatch.setattr(os, "getpid", lambda: 7)
    write_file(tmp_path, {"b": of(1)})
    assert read_files(tmp_path) == {
        "a": of(2),
        "b": of(1, config={"chunk_size": 64, "other": "x"}),
    }
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "gone", {})


def test_a_file_is_whole_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path, {"a": of(0)})
    monkeypatch.setattr(Path, "replace", lambda self, target: None)
    write_file(tmp_path, {"a": of(1)})
    assert read_files(tmp_path) == {"a": of(0)}


def test_a_process_is_named_among_those_of_all_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots.socket, "gethostname", lambda: "node-1")
    monkeypatch.setattr(os, "getpid", lambda: 7)
    assert this_process() == "node-1/7"


def test_a_store_keeps_the_newest_until_it_is_cleared() -> None:
    store = SnapshotStore()
    store.add({"a": of(1)})
    store.add({"a": of(0, config={}), "b": of(0)})
    assert store.all() == {"a": of(1, config={}), "b": of(0)}
    assert json.dumps(store.all())
    store.clear()
    assert store.all() == {}
