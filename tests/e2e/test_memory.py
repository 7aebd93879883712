"""What each part of a server takes, in a container of the size of ``overlays/local``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kserve_lmcache.config.memory_budget import GIB, PROCESSES, SPARE
from tests.support.limits import limited
from tests.support.server import Server, long_prompt, running

LIMIT = 5 * GIB
# The title of each of vLLM's processes has one of these words.
TITLES = {"EngineCore": "EngineCore", "Worker": "worker"}
# How far a process may be from its figure.
TOLERANCE = 1.15
_IN_THE_WORKER = re.compile(r"(weights|vLLM's KV cache|local tier) ([\d.]+)")


def taken(server: Server) -> dict[str, float]:
    """GiB of each part: what its processes have alone, and their share of what they have together.

    Reads ``Pss``, which counts a page of N processes by an Nth in each.
    """
    found: dict[str, float] = {}
    for process in server.process.family():
        title = " ".join(process.cmdline())
        part = next((part for word, part in TITLES.items() if word in title), "API process")
        found[part] = found.get(part, 0.0) + process.memory_full_info().pss / GIB
    return found


@pytest.mark.slow
def test_the_defaults_leave_a_fifth_of_a_small_container(tmp_path: Path) -> None:
    with (
        limited(LIMIT) as prefix,
        running(tmp_path / "log", prefix=prefix, sizes=("--max-model-len=4096",)) as server,
    ):
        for number in range(10):
            server.chat(long_prompt(f"memory{number}"), max_tokens=8)
        found = taken(server)
        (line,) = re.findall(r"Memory: .*", server.process.output())
    print(line)
    print({part: round(size, 2) for part, size in found.items()})
    assert sum(found.values()) <= LIMIT / GIB * (1 - SPARE) * TOLERANCE
    found["worker"] -= sum(float(size) for _, size in _IN_THE_WORKER.findall(line))
    for part in ("API process", "EngineCore", "worker"):
        assert found[part] <= PROCESSES["cpu"][part] * TOLERANCE, part


@pytest.mark.slow
def test_a_container_in_which_the_server_cannot_fit_ends_with_one_sentence(tmp_path: Path) -> None:
    with limited(LIMIT) as prefix, pytest.raises(AssertionError, match="ended with 2"):  # noqa: SIM117
        with running(tmp_path / "log", "--lmcache", "max_local_cpu_size=4", prefix=prefix):
            pass
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert "the server needs" in last
    assert "local tier 4.00" in last
