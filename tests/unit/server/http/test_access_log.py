"""Which requests uvicorn's access log has."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.server.http import access_log

ACCESS = logging.getLogger("uvicorn.access")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", "kserve.trace")
    before = {name: logging.getLogger(name).level for name in names}
    ACCESS.setLevel(logging.INFO)  # KServe's configuration
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    ACCESS.filters.clear()


def is_written(line: str, status: int = 200) -> bool:
    """Whether a request gets a line, as uvicorn logs it."""
    method, _, path = line.partition(" ")
    arguments = ("127.0.0.1:5", method, path, "1.1", status)
    if not ACCESS.isEnabledFor(logging.INFO):
        return False
    record = ACCESS.makeRecord(
        ACCESS.name, logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None
    )
    return bool(ACCESS.filter(record))


PROBES = [
    "GET /",
    "GET /metrics",
    "GET /v2/health/ready",
    "GET /v2/health/live",
    "HEAD /v2/health/live",
    "GET /v2/models/org%2Fmodel/ready",
    "GET /v1/models/model",
    "GET /openai/health",
    "GET /offload?format=json",
]
REQUESTS = ["POST /openai/v1/chat/completions", "GET /openai/v1/models", "POST /v2/health/ready"]


@pytest.mark.parametrize("line", PROBES)
def test_a_probe_has_a_line_when_it_fails_alone(line: str) -> None:
    access_log.configure(parse_arguments([]), "info")
    assert not is_written(line)
    assert is_written(line, status=503)


@pytest.mark.parametrize("line", REQUESTS)
def test_a_request_has_a_line(line: str) -> None:
    access_log.configure(parse_arguments([]), "info")
    assert is_written(line)


def test_debug_leaves_nothing_out() -> None:
    access_log.configure(parse_arguments([]), "debug")
    assert all(map(is_written, PROBES + REQUESTS))


@pytest.mark.parametrize(
    ("level", "flags"), [("warning", []), ("info", ["--disable-uvicorn-access-log"])]
)
def test_it_can_be_turned_off(level: str, flags: list[str]) -> None:
    access_log.configure(parse_arguments(flags), level)
    assert not any(map(is_written, PROBES + REQUESTS))


def test_vllms_flag_leaves_endpoints_out() -> None:
    flag = "--disable-access-log-for-endpoints=/openai/v1/models, /a"
    access_log.configure(parse_arguments([flag]), "info")
    assert [is_written(line) for line in REQUESTS] == [True, False, True]
    assert not is_written("GET /a?b=c")


@pytest.mark.parametrize(
    ("level", "flags", "expected"),
    [
        ("info", [], logging.WARNING),
        ("error", [], logging.ERROR),
        ("debug", [], logging.DEBUG),
        ("info", ["--uvicorn-log-level=info"], logging.INFO),
    ],
)
def test_the_level_of_uvicorns_other_records(level: str, flags: list[str], expected: int) -> None:
    access_log.configure(parse_arguments(flags), level)
    assert logging.getLogger("uvicorn").level == expected
    assert logging.getLogger("uvicorn.error").level == expected


@pytest.mark.parametrize(
    ("flags", "expected"), [([], False), (["--enable_latency_logging=1"], True)]
)
def test_latencies_are_logged_when_the_flag_asks_for_them(flags: list[str], expected: bool) -> None:
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    access_log.configure(parse_arguments(flags), "info")
    assert logging.getLogger("kserve.trace").isEnabledFor(logging.INFO) is expected
