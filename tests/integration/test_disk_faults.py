"""What happens to a disk during traffic costs hits and nothing else.

The connectors, LMCache, our tier and vLLM's scheduler are the real ones; the model is a formula
(:mod:`tests.support.simulated_engine`). They run in a process that alone sees the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.damage import DAMAGES, damage_files
from tests.support.disk_traffic import Answer, Traffic, disk_traffic
from tests.support.disks import DISK_FAULTS, Disk, small_disk

MIB = 2**20
BACK = 5.0  # seconds until there are hits again
DURING = 100  # answers


@dataclass(frozen=True)
class Running:
    disk: Disk
    traffic: Traffic


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("disk")
    with small_disk(directory, 8 * MIB) as disk:
        log = directory / "traffic.log"
        with disk_traffic(disk.prefix, disk.directory, 3 * MIB, directory, log) as traffic:
            yield Running(disk, traffic)


def check(answers: list[Answer]) -> None:
    """All are right, and nothing was raised that vLLM would have seen."""
    assert all(answer.right for answer in answers)
    last = answers[-1]
    assert last.faults == {}
    assert last.disk["exceptions"] == 0
    assert last.disk["used_bytes"] <= last.disk["capacity_bytes"]


def until_back(traffic: Traffic) -> float:
    """Seconds until all of a prompt comes from the disk again, and new ones go there."""
    began = traffic.answers[-1]
    while True:
        for answer in traffic.wait_for(1):
            check([answer])
            writes = answer.disk["chunks_written"] > began.disk["chunks_written"]
            if writes and answer.again and answer.hit == 1:
                return answer.at - began.at


def apply(running: Running, name: str) -> list[Answer]:
    """The answers while a disk has a fault."""
    with DISK_FAULTS[name](running.disk):
        return running.traffic.wait_for(DURING)


def hits(answers: list[Answer]) -> float:
    return sum(answer.hit for answer in answers)


def test_prompts_come_from_the_disk_which_keeps_to_its_bound(running: Running) -> None:
    until_back(running.traffic)
    answers = running.traffic.wait_for(2 * DURING)
    check(answers)
    assert hits([answer for answer in answers if answer.again]) > DURING / 2
    assert hits([answer for answer in answers if not answer.again]) == 0
    room = os.statvfs(running.disk.seen())
    taken = (room.f_blocks - room.f_bfree) * room.f_frsize
    assert 0 < taken <= 3 * MIB + MIB // 8  # what is being written, too


def test_a_disk_full_of_other_things(running: Running) -> None:
    answers = apply(running, "full")
    check(answers)
    assert hits(answers) > 0
    before, after = answers[DURING // 4].disk, answers[-1].disk
    # New chunks take the place of old ones.
    assert after["chunks_written"] > before["chunks_written"]
    assert after["evictions"] > before["evictions"]
    assert until_back(running.traffic) < BACK


def test_a_read_only_disk(running: Running) -> None:
    before = running.traffic.answers[-1].disk
    answers = apply(running, "read-only")
    check(answers)
    assert hits(answers) > 0
    assert answers[-1].disk["dropped_full"] > before["dropped_full"]
    assert answers[-1].disk["up"]
    assert until_back(running.traffic) < BACK


def test_a_removed_directory(running: Running) -> None:
    before = running.traffic.answers[-1].disk
    answers = apply(running, "removed")
    check(answers)
    assert min(answer.disk["files"] for answer in answers) < before["files"] / 2
    assert answers[-1].disk["failures"] == before["failures"]
    assert until_back(running.traffic) < BACK
    assert running.disk.seen().is_dir()


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files(running: Running, name: str) -> None:
    before = running.traffic.answers[-1].disk["chunks_corrupt"]
    assert damage_files(running.disk.seen(), DAMAGES[name]) > 1
    answers = running.traffic.wait_for(DURING)
    check(answers)
    assert answers[-1].disk["chunks_corrupt"] > before
    assert until_back(running.traffic) < BACK
