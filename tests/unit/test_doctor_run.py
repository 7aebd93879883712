"""The doctor keeps its time, its order and its composure, whatever a check does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor import run
from kserve_lmcache.doctor.check import Check, Finding, Status, Subject, failure, foreign, ok, size
from kserve_lmcache.doctor.run import examine
from kserve_lmcache.doctor.stage import Stage, in_order, within

PASSWORD = "geheim/Wort 1"


def slow_check(name: str, seconds: float) -> Check:
    def slow(subject: Subject) -> Iterator[Finding]:
        yield ok(name, "at once")
        time.sleep(seconds)
        yield ok(name, "later")

    return Check(name, slow)


def test_checks_run_side_by_side_and_are_reported_in_their_order() -> None:
    start = time.monotonic()
    findings = examine(Subject(), [slow_check("a", 1.0), slow_check("b", 0.9)])
    assert time.monotonic() - start < 1.8
    assert [(finding.name, finding.evidence) for finding in findings] == [
        ("a", "at once"),
        ("a", "later"),
        ("b", "at once"),
        ("b", "later"),
    ]
    assert findings[0].seconds < 0.7
    assert 1.0 <= findings[1].seconds < 1.7


def test_a_check_that_hangs_is_a_failure_and_holds_nobody() -> None:
    hang = threading.Event()

    def hanging(subject: Subject) -> Iterator[Finding]:
        yield ok("first", "seen")
        hang.wait()

    start = time.monotonic()
    findings = examine(Subject(), [Check("disk", hanging), slow_check("b", 0)], timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 3
    hang.set()
    assert [finding.name for finding in findings] == ["first", "disk", "b", "b"]
    assert findings[1].status is Status.FAILURE
    assert findings[1].evidence == "did not answer within 0.3 s"
    assert findings[1].fix.startswith("Something that it asks hangs")
    assert findings[1].seconds == 0.3


def test_a_hanging_check_does_not_keep_the_process() -> None:
    program = (
        "import threading\n"
        "from kserve_lmcache.doctor.check import Check, Subject\n"
        "from kserve_lmcache.doctor.run import examine\n"
        "hang = Check('x', lambda subject: iter(threading.Event().wait, None))\n"
        "print(examine(Subject(), [hang], timeout=0.1)[0].evidence)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert result.stdout == "did not answer within 0.1 s\n"


def test_a_check_that_raises_is_a_failure_without_the_password() -> None:
    def raising(subject: Subject) -> Iterator[Finding]:
        raise RuntimeError(f"AUTH {PASSWORD} failed")
        yield

    remote = Remote("redis://cache", "the test", password=PASSWORD)
    (finding,) = examine(Subject(remote=remote), [Check("store", raising)])
    assert finding.status is Status.FAILURE
    assert finding.name == "store"
    assert finding.evidence == "the check failed by RuntimeError: AUTH *** failed"
    assert "report it" in finding.fix


def test_a_short_time_out_makes_checks_impatient() -> None:
    def patience(subject: Subject) -> Iterator[Finding]:
        yield ok("patience", f"{subject.patience:g}")

    check = Check("patience", patience)
    assert examine(Subject(), [check], timeout=10)[0].evidence == "3"
    assert examine(Subject(), [check], timeout=2)[0].evidence == "0.6"


def test_everything_is_examined_by_default() -> None:
    names = [check.name for check in run.CHECKS]
    assert names == [
        "hash seed",
        "versions",
        "memory",
        "shared memory",
        "local disk",
        "accelerator",
        "model",
        "remote store",
    ]
    (last,) = examine(Subject(), run.CHECKS[-1:])
    assert last.status is Status.SKIPPED
    assert last.evidence == "none is asked for: nothing is shared between replicas"


def test_a_stage_needs_those_before_it() -> None:
    def crash() -> Finding:
        raise KeyError(PASSWORD)

    remote = Remote("redis://cache", "the test", password=PASSWORD)
    stages = [
        Stage("name", lambda: ok("name", "")),
        Stage("connection", lambda: failure("connection", "refused", "start it"), ("name",)),
        Stage("login", lambda: ok("login", ""), ("connection",)),
        Stage("memory", lambda: ok("memory", ""), ("login",)),
        Stage("clock", lambda: ok("clock", ""), ("name",)),
        Stage("disk", crash),
        Stage("data", lambda: ok("data", ""), ("clock", "disk")),
    ]
    findings = list(in_order(stages, Subject(remote=remote)))
    assert [(finding.status.value, finding.evidence) for finding in findings] == [
        ("ok", ""),
        ("failure", "refused"),
        ("skipped", "needs connection"),
        ("skipped", "needs connection"),
        ("ok", ""),
        ("failure", "the check failed by KeyError: '***'"),
        ("skipped", "needs disk"),
    ]


def test_a_function_without_a_time_out_gets_one() -> None:
    assert within(5, lambda: "answer") == "answer"
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    hang = threading.Event()
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        within(0.2, hang.wait)
    assert time.monotonic() - start < 3
    hang.set()


@pytest.mark.parametrize(
    "said",
    [
        f"unknown command `HELLO`, with args beginning with: `AUTH` `{PASSWORD}`",
        "redis://:geheim%2FWort%201@cache",
        "redis://:geheim/Wort%201@cache",
    ],
)
def test_what_a_server_says_shows_no_password(said: str) -> None:
    shown = foreign(said, Remote("redis://cache", "the test", password=PASSWORD))
    assert "geheim" not in shown
    assert "***" in shown


def test_what_a_server_says_is_one_line_of_text() -> None:
    assert foreign("one\r\n two\x1b[2J\tthree ", None) == "one two [2J three"
    assert foreign("redis://user:other@cache", None) == "redis://user:***@cache"


def test_a_subject_shows_no_password() -> None:
    remote = Remote("redis://cache", "the test", password=PASSWORD)
    subject = Subject({"LMCACHE_REMOTE_PASSWORD": PASSWORD}, remote)
    assert PASSWORD not in repr(subject)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (2**30, "1.0 GiB"),
        (2**40, "1.0 TiB"),
        (2**51, "2048.0 TiB"),
    ],
)
def test_sizes_for_people(count: float, shown: str) -> None:
    assert size(count) == shown
