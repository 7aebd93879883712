"""The size of the local tier: its default, and its check against the container and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config import local_tier
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.config.resources import Limit
from tests.support.configuration import resolved

GIB = 2**30
REMOTE = "remote_url: redis://redis:6379\n"
STOCK = f"{REMOTE}remote_connector: lmcache\n"
SHAPE = EngineShape(
    device="cpu",
    workers=1,
    block_size=128,
    kv_bytes_per_token=2**15,
    max_model_len=2**15,  # one request is 1 GiB
    max_num_seqs=2,
)


def checked(tmp_path: Path, file: str, gib: float, shape: EngineShape = SHAPE) -> tuple[Any, Any]:
    """The problems and the notes, in a container of ``gib`` GiB."""
    configuration = resolved(tmp_path, file)
    local_tier.check(configuration, Limit(gib * GIB, "the container's limit"), shape)
    found = [str(problem).replace(str(tmp_path), "") for problem in configuration.problems]
    return found, configuration.notes


def test_a_tier_larger_than_the_container(tmp_path: Path) -> None:
    file = "max_local_cpu_size: 2.5"
    two_workers = EngineShape("cpu", 2, 128, 2**15, 2**15, 2)
    found, _ = checked(tmp_path, file, 4, two_workers)
    assert found == [
        "/lmcache.yaml:1: max_local_cpu_size of 2.5 GiB for each of 2 workers is more than the "
        "4.0 GiB of the container's limit. Lower max_local_cpu_size, raise the container's memory "
        "limit, or remove max_local_cpu_size: the default fits the limit."
    ]
    assert checked(tmp_path, file, 5, two_workers) == ([], [])


def test_a_tier_smaller_than_a_request(tmp_path: Path) -> None:
    found, _ = checked(tmp_path, f"{STOCK}max_local_cpu_size: 0.5", 8)
    assert found == [
        "/lmcache.yaml:3: max_local_cpu_size of 0.5 GiB is less than one request of 32768 tokens "
        "(1.00 GiB): LMCache would wait for ever to load the request. Raise max_local_cpu_size and "
        "the container's memory limit, or lower --max-model-len."
    ]


@pytest.mark.parametrize("file", [REMOTE, "local_disk: /cache\nmax_local_disk_size: 5\n", ""])
def test_only_lmcaches_own_connector_waits_for_room(tmp_path: Path, file: str) -> None:
    assert checked(tmp_path, f"{file}max_local_cpu_size: 0.5", 8) == ([], [])


def test_a_tier_for_fewer_requests_than_may_run(tmp_path: Path) -> None:
    assert checked(tmp_path, f"{STOCK}max_local_cpu_size: 1.5", 8) == (
        [],
        [
            "max_local_cpu_size of 1.5 GiB holds 1.5 requests of 32768 tokens (32768 bytes each), "
            "and --max-num-seqs lets 2 run. Further loads wait for each other"
        ],
    )
    assert checked(tmp_path, f"{STOCK}max_local_cpu_size: 2", 8) == ([], [])


def test_a_chunk_is_a_multiple_of_a_block(tmp_path: Path) -> None:
    found, _ = checked(tmp_path, "chunk_size: 200\nmax_local_cpu_size: 1", 8)
    assert found == [
        "/lmcache.yaml:1: chunk_size of 200 is no multiple of vLLM's block size 128. "
        "Use 256, or set --block-size."
    ]
    assert checked(tmp_path, "chunk_size: 384\nmax_local_cpu_size: 1", 8) == ([], [])


@pytest.mark.parametrize(
    ("gib", "device", "workers", "request_gib", "expected"),
    [
        (24, "cpu", 1, 0, 3.6),
        (24, "cuda", 1, 0, 9.6),
        (24, "cuda", 4, 0, 2.325),  # what four workers leave, less a fifth
        (1024, "cuda", 1, 0, 32.0),
        (0.5, "cpu", 1, 0, 0.125),
        (24, "cpu", 1, 8, 8.0),  # one request, although it is more than the share
        (24, "cpu", 1, 13, 3.6),  # too much for the container
        (24, "cpu", 2, 7, 1.8),
    ],
)
def test_default_size(
    gib: float, device: str, workers: int, request_gib: float, expected: float
) -> None:
    memory = Limit(gib * GIB, "the test")
    size = local_tier.default_size(memory, Needs(device, workers), int(request_gib * GIB))
    assert size.value == pytest.approx(expected, abs=0.0011)
    assert f"{gib:.1f} GiB, " in size.source
    assert "the test" in size.source
