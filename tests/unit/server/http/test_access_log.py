"""Which requests uvicorn's access log has."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.logs import IS_PROBE
from kserve_lmcache.server.http import access_log
from tests.support.http import CHAT, serving
from tests.support.waiting import until

ACCESS = logging.getLogger("uvicorn.access")


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", "kserve.trace")
    before = {name: logging.getLogger(name).level for name in names}
    ACCESS.setLevel(logging.INFO)  # KServe's configuration
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
    for name in ("kserve", "access", *names):
        logging.getLogger(name).filters.clear()


def configure(args: Namespace, level: str) -> None:
    """As the server does it."""
    access_log.configure(args, level)
    access_log.leave_out_probes(args, level)


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
    configure(parse_arguments([]), "info")
    assert not is_written(line)
    assert is_written(line, status=503)


@pytest.mark.parametrize("line", REQUESTS)
def test_a_request_has_a_line(line: str) -> None:
    configure(parse_arguments([]), "info")
    assert is_written(line)


def test_debug_leaves_nothing_out() -> None:
    configure(parse_arguments([]), "debug")
    assert all(map(is_written, PROBES + REQUESTS))


@pytest.mark.parametrize(
    ("level", "flags"), [("warning", []), ("info", ["--disable-uvicorn-access-log"])]
)
def test_it_can_be_turned_off(level: str, flags: list[str]) -> None:
    configure(parse_arguments(flags), level)
    assert not any(map(is_written, PROBES + REQUESTS))


def test_vllms_flag_leaves_endpoints_out() -> None:
    flag = "--disable-access-log-for-endpoints=/openai/v1/models, /a"
    configure(parse_arguments([flag]), "info")
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
    configure(parse_arguments(flags), level)
    assert logging.getLogger("uvicorn").level == expected
    assert logging.getLogger("uvicorn.error").level == expected


@pytest.mark.parametrize(
    ("flags", "expected"), [([], False), (["--enable_latency_logging=1"], True)]
)
def test_latencies_are_logged_when_the_flag_asks_for_them(flags: list[str], expected: bool) -> None:
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    configure(parse_arguments(flags), "info")
    assert logging.getLogger("kserve.trace").isEnabledFor(logging.INFO) is expected


class Records(logging.Handler):
    """Keeps what the loggers of requests write."""

    LOGGERS = ("kserve", "kserve.trace", "access", "uvicorn.access")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.name}: {record.getMessage()}")

    def __enter__(self) -> Records:
        for name in self.LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def since(self, lines: int = 0) -> list[str]:
        """What was written since the last call, once it is so many lines.

        The server writes some of them after the client has its answer.
        """
        until(lambda: len(self.found) >= lines)
        found, self.found = self.found, []
        return found


REAL_PROBES = ("/", "/v2/health/live", "/v2/health/ready", "/v1/models/adapter", "/metrics")


def test_probes_and_scrapes_of_a_real_server_leave_nothing_in_any_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with serving() as server, Records() as records:
        configure(parse_arguments(["--enable_latency_logging=1"]), "info")
        for path in REAL_PROBES:
            assert server.client.get(path).status_code == 200
        assert records.since() == []
        server.client.post(CHAT, json=server.chat())
        both = {"kserve.trace", "uvicorn.access"}
        until(lambda: {line.partition(":")[0] for line in records.found} == both)


def test_a_probe_that_fails_is_one_line_and_no_traceback() -> None:
    with serving() as server, Records() as records:
        configure(parse_arguments(["--enable_latency_logging=1"]), "info")
        server.lifecycle.fail("the engine has died")
        for path in ("/", "/v2/health/live", "/v2/health/ready", "/v1/models/adapter"):
            assert server.client.get(path).status_code == 503
            (line,) = records.since(lines=1)
            assert line.startswith("uvicorn.access: ")
            assert line.endswith(" 503")
        # A person's request has what KServe says.
        server.client.get("/v2/models/nobody")
        assert any(line.startswith("kserve: ") for line in records.since(lines=1))


def test_an_error_in_a_scrape_that_nobody_expects_is_written() -> None:
    configure(parse_arguments([]), "info")
    token = IS_PROBE.set(True)
    try:
        with Records() as records:
            logging.getLogger("kserve").error("Exception:", exc_info=ValueError("broken"))
    finally:
        IS_PROBE.reset(token)
    assert records.since() == ["kserve: Exception:"]


def test_a_log_configuration_of_ones_own_has_no_probes_either() -> None:
    access_log.leave_out_probes(parse_arguments(["--log_config_file=/nowhere.yaml"]), "info")
    assert not any(map(is_written, PROBES))
    assert all(map(is_written, REQUESTS))


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/v1/models/model"])
def test_a_probe_at_the_root_has_a_line_when_it_fails_alone(path: str) -> None:
    configure(parse_arguments([]), "info")
    assert not is_written(f"GET {path}")
    assert is_written(f"GET {path}", 503)
    assert is_written("POST /v1/completions")
