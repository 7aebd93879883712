"""Steps end in their time, a failure ends nothing else, and servers end with what needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from tests.gpu.plan import Step
from tests.gpu.processes import StepProcess
from tests.gpu.runner import FAILED, LEFT_OUT, PASSED, Result, Runner

ROOT = Path(__file__).parents[3]
# Steps write their report at once.
WRITE = """
import json, os, sys, time
def say(**found):
    with open(sys.argv[1] + ".new", "w") as file:
        json.dump(found, file)
    os.rename(sys.argv[1] + ".new", sys.argv[1])
"""


def step(name: str, budget: float = 20.0, least: float = 0.0, **values: object) -> Step:
    return Step(name, "It does something.", name, budget, least, **values)  # type: ignore[arg-type]


class Bench:
    """Runs steps that are pieces of Python."""

    def __init__(self, directory: Path, codes: Mapping[str, str]) -> None:
        self._directory, self._codes = directory, codes
        self.processes: dict[str, StepProcess] = {}

    def run(self, *steps: Step, seconds: float = 60.0, at_once: int = 1) -> dict[str, Result]:
        results = Runner(self._start, self._directory, seconds, at_once).run(steps)
        assert [each.step for each in results] == list(steps)
        return {each.step.name: each for each in results}

    def _start(self, step: Step, file: Path) -> StepProcess:
        command = [sys.executable, "-c", WRITE + self._codes[step.name], str(file)]
        log = self._directory / f"{step.name}.log"
        started = StepProcess(step.name, command, log, os.environ, ROOT)
        self.processes[step.name] = started
        return started


def alive(bench: Bench, name: str) -> list[int]:
    return bench.processes[name].family()


def test_a_failure_ends_those_alone_that_need_it(tmp_path: Path) -> None:
    codes = {
        "broken": "say(error='why', facts={'a': 1}); sys.exit(1)",
        "silent": "",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "good": "say(facts={'a': 2})",
        "other": "say(facts={})",
    }
    found = Bench(tmp_path, codes).run(
        step("broken"),
        step("silent"),
        step("killed"),
        step("good"),
        step("other", needs=("good", "broken")),
    )
    assert [each.status for each in found.values()] == [FAILED, FAILED, FAILED, PASSED, LEFT_OUT]
    assert (found["broken"].reason, found["broken"].found) == ("why", {"facts": {"a": 1}})
    assert found["silent"].reason == "it ended with 0 and without a report"
    assert found["killed"].reason == "it ended with -9 and without a report"
    assert found["good"].found == {"facts": {"a": 2}}
    assert found["other"].reason == "broken did not pass"


def test_a_step_that_takes_too_long_fails_and_its_processes_end(tmp_path: Path) -> None:
    child = (
        "import subprocess;"
        "subprocess.Popen(['sleep', '100'], start_new_session=True);"
        "say(facts={'a': 1}); time.sleep(100)"
    )
    bench = Bench(tmp_path, {"long": child, "next": "say(facts={})"})
    began = time.monotonic()
    found = bench.run(step("long", budget=4.0), step("next"))
    assert time.monotonic() - began < 25
    assert (found["long"].status, found["next"].status) == (FAILED, PASSED)
    assert found["long"].reason == "it took longer than 4 s"
    assert found["long"].found == {"facts": {"a": 1}}
    assert alive(bench, "long") == []


def test_the_time_of_the_whole_cuts_a_step_and_leaves_out_the_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"long": "time.sleep(100)", "never": "say(facts={})"})
    began = time.monotonic()
    found = bench.run(step("long"), step("never", least=1.0), seconds=1.0)
    assert time.monotonic() - began < 15
    assert [each.status for each in found.values()] == [LEFT_OUT, LEFT_OUT]
    assert found["long"].reason.startswith("the time of the whole ended after ")
    assert found["never"].reason == "0 s were left, and it needs 1 s"
    assert "never" not in bench.processes


def test_a_step_begins_only_where_the_time_may_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"large": "say(facts={})", "small": "say(facts={})"})
    found = bench.run(step("large", least=30.0), step("small", least=1.0), seconds=20.0)
    assert [each.status for each in found.values()] == [LEFT_OUT, PASSED]


def test_servers_stay_until_the_last_step_that_needs_them(tmp_path: Path) -> None:
    server = "say(facts={'port': 1}); time.sleep(100)"
    look = "import subprocess, os; say(facts={})"
    bench = Bench(tmp_path, {"server": server, "first": look, "second": look, "after": look})
    seen: dict[str, bool] = {}

    def say(result: Result) -> None:
        seen[result.step.name] = bool(alive(bench, "server"))

    steps = [
        step("server", stays=True),
        step("first", needs=("server",)),
        step("second", needs=("server",)),
        step("after"),
    ]
    results = Runner(bench._start, tmp_path, 60.0, 1, say).run(steps)
    assert [each.status for each in results] == [PASSED] * 4
    assert seen == {"server": True, "first": True, "second": True, "after": False}


@pytest.mark.parametrize(
    ("code", "reason"),
    [("say(error='no port'); time.sleep(100)", "no port"), ("sys.exit(3)", "it ended with 3")],
)
def test_servers_that_do_not_start_are_a_failure(tmp_path: Path, code: str, reason: str) -> None:
    bench = Bench(tmp_path, {"server": code, "user": "say(facts={})"})
    found = bench.run(step("server", budget=3.0, stays=True), step("user", needs=("server",)))
    assert (found["server"].status, found["user"].status) == (FAILED, LEFT_OUT)
    assert found["server"].reason.startswith(reason)
    assert alive(bench, "server") == []


def test_servers_end_with_the_last_step_of_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"server": "say(facts={'a': 1}); time.sleep(100)"})
    assert bench.run(step("server", stays=True))["server"].status == PASSED
    assert alive(bench, "server") == []


def test_steps_that_are_marked_so_run_together(tmp_path: Path) -> None:
    code = "began = time.time(); time.sleep(2); say(facts={'from': began, 'to': time.time()})"
    steps = [step(name, together=name != "alone") for name in ("alone", "a", "b", "c")]
    bench = Bench(tmp_path, dict.fromkeys([each.name for each in steps], code))
    found = bench.run(*steps, at_once=3)
    alone, *others = (each.found["facts"] for each in found.values())
    assert alone["to"] <= min(each["from"] for each in others)
    assert max(each["from"] for each in others) < min(each["to"] for each in others)


def test_an_interrupt_ends_what_runs(tmp_path: Path) -> None:
    """A process of its own, which gets the signal as the script does."""
    code = (
        "import os, signal, sys, threading; from pathlib import Path;"
        "from tests.gpu.processes import StepProcess; from tests.gpu.runner import Runner;"
        "from tests.gpu.plan import Step; here = Path(sys.argv[1]);"
        "start = lambda step, file: StepProcess(step.name, ['sleep', '98.7'],"
        " here / 'log', os.environ, here);"
        "threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start();"
        "Runner(start, here, 60).run([Step('a', '', '', 50, 0, together=True)])"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert time.monotonic() - began < 20
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert path.read_bytes() != b"sleep\x0098.7\x00"
