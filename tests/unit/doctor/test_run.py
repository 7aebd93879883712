"""The doctor keeps its time and its order, whatever a check does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.doctor import run, store
from kserve_lmcache.doctor.check import (
    Check,
    Finding,
    Status,
    failure,
    in_order,
    ok,
    size,
    within,
)
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.doctor.run import examine

PASSWORD = "geheim/Wort 1"


def slow_check(name: str, seconds: float) -> Check:
    def slow(context: Context) -> Iterator[Finding]:
        yield ok("at once")
        time.sleep(seconds)
        yield ok("later")

    return Check(name, slow)


def test_checks_run_side_by_side_and_are_reported_in_their_order() -> None:
    start = time.monotonic()
    findings = examine(Context(), [slow_check("a", 1.0), slow_check("b", 0.9)])
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

    def hanging(context: Context) -> Iterator[Finding]:
        yield ok("seen")
        hang.wait()

    start = time.monotonic()
    findings = examine(Context(), [Check("disk", hanging), slow_check("b", 0)], timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 3
    hang.set()
    assert [finding.name for finding in findings] == ["disk", "disk", "b", "b"]
    assert findings[1].status is Status.FAILURE
    assert findings[1].evidence == "did not answer within 0.3 s"
    assert findings[1].fix.startswith("Something that the check asks hangs")
    assert findings[1].seconds == 0.3


def test_a_hanging_check_does_not_keep_the_process() -> None:
    program = (
        "import threading\n"
        "from kserve_lmcache.doctor.check import Check\n"
        "from kserve_lmcache.doctor.context import Context\n"
        "from kserve_lmcache.doctor.run import examine\n"
        "hang = Check('x', lambda context: iter(threading.Event().wait, None))\n"
        "print(examine(Context(), [hang], timeout=0.1)[0].evidence)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert result.stdout == "did not answer within 0.1 s\n"


def test_a_check_that_raises_is_a_failure_without_the_password() -> None:
    def raising(context: Context) -> Iterator[Finding]:
        raise RuntimeError(f"AUTH {PASSWORD} failed")
        yield

    remote = Remote("redis://cache", "the test", password=PASSWORD)
    (finding,) = examine(Context(remote=remote), [Check("store", raising)])
    assert finding.status is Status.FAILURE
    assert finding.name == "store"
    assert finding.evidence == "the check failed by RuntimeError: AUTH *** failed"
    assert "report it" in finding.fix


def test_a_short_time_out_makes_checks_impatient() -> None:
    def timeout(context: Context) -> Iterator[Finding]:
        yield ok(f"{context.timeout:g}")

    check = Check("timeout", timeout)
    assert examine(Context(), [check], timeout=10)[0].evidence == "3"
    assert examine(Context(), [check], timeout=2)[0].evidence == "0.6"


def test_everything_is_examined_by_default() -> None:
    names = [check.name for check in run.CHECKS]
    assert names == [
        "hash seed",
        "versions",
        "memory",
        "directories",
        "compile cache",
        "local disk",
        "cache server",
        "accelerator",
        "model",
        "remote store",
    ]
    (last,) = examine(Context(), run.CHECKS[-1:])
    assert last.status is Status.SKIPPED
    assert last.evidence == "no remote store is configured: replicas share nothing"


def test_a_check_is_skipped_when_one_that_it_needs_has_failed() -> None:
    def crash(context: Context) -> Finding:
        raise KeyError(PASSWORD)

    def well(context: Context) -> Finding:
        return ok("")

    context = Context(remote=Remote("redis://cache", "the test", password=PASSWORD))
    checks = [
        Check("name", well),
        Check("connection", lambda context: failure("refused", "start it"), ("name",)),
        Check("login", well, ("connection",)),
        Check("memory", well, ("login",)),
        Check("clock", well, ("name",)),
        Check("disk", crash),
        Check("data", well, ("clock", "disk")),
    ]
    findings = list(in_order(checks, context, context.quote))
    assert [finding.name for finding in findings] == [check.name for check in checks]
    assert [(finding.status.value, finding.evidence) for finding in findings] == [
        ("ok", ""),
        ("failure", "refused"),
        ("skipped", "needs connection"),
        ("skipped", "needs connection"),
        ("ok", ""),
        ("failure", "the check failed by KeyError: '***'"),
        ("skipped", "needs disk"),
    ]


def _fails_until(tries: int, seen: list[float]) -> Callable[[Context], Finding]:
    """A check that fails so many times, and keeps the moments at which it was run."""

    def check(context: Context) -> Finding:
        seen.append(time.monotonic())
        return failure("refused", "start it") if len(seen) <= tries else ok("there")

    return check


def test_a_failure_that_may_pass_is_looked_at_again() -> None:
    seen: list[float] = []
    checks = [
        Check("connection", _fails_until(2, seen), may_pass=True),
        Check("login", lambda context: ok("by password"), ("connection",)),
    ]
    found = list(in_order(checks, Context(), str, patience=5))
    assert [finding.status for finding in found] == [Status.OK, Status.OK]
    assert found[0].evidence == "there (3 tries in 1 s)"
    assert len(seen) == 3


def test_patience_ends_for_all_checks_at_the_same_moment() -> None:
    start = time.monotonic()
    checks = [Check(name, _fails_until(99, []), may_pass=True) for name in ("name", "connection")]
    found = list(in_order(checks, Context(), str, patience=1.2))
    assert time.monotonic() - start < 1.9
    assert [finding.status for finding in found] == [Status.FAILURE, Status.FAILURE]
    assert [finding.evidence for finding in found] == ["refused (3 tries in 1 s)", "refused"]


def test_a_failure_that_cannot_pass_is_looked_at_once() -> None:
    seen: list[float] = []
    list(in_order([Check("login", _fails_until(1, seen))], Context(), str, patience=5))
    list(in_order([Check("name", _fails_until(9, seen), may_pass=True)], Context(), str))
    assert len(seen) == 2


def test_most_of_the_time_is_for_trying_again() -> None:
    def patience(context: Context) -> Finding:
        return ok(f"{context.patience:g}")

    check = Check("patience", patience)
    assert examine(Context(), [check], timeout=20, patient=True)[0].evidence == "12"
    assert examine(Context(), [check], timeout=20)[0].evidence == "0"


def test_the_way_to_every_store_may_open_late() -> None:
    late = {check.name for _, check in store.CHECKS if check.may_pass}
    assert late == {"remote name", "remote connection", "remote sentinel"}


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
    shown = Context(remote=Remote("redis://cache", "the test", password=PASSWORD)).quote(said)
    assert "geheim" not in shown
    assert "***" in shown


def test_what_a_server_says_is_one_line_of_text() -> None:
    assert Context().quote("one\r\n two\x1b[2J\tthree ") == "one two [2J three"
    assert Context().quote("redis://user:other@cache") == "redis://user:***@cache"


def test_a_context_shows_no_password() -> None:
    remote = Remote("redis://cache", "the test", password=PASSWORD)
    context = Context({"LMCACHE_REMOTE_PASSWORD": PASSWORD}, remote)
    assert PASSWORD not in repr(context)


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
