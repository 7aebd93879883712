"""The cause of the engine's end reaches the server in one sentence; tracebacks need debug logs."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kserve_lmcache.engine import failures
from kserve_lmcache.engine.failures import NOBODY, Failures
from tests.support.server import engine_environment

# As vLLM's processes: a worker fails and logs it, then the engine's core fails because of it.
PROBE = """
import logging, multiprocessing, os, sys
from kserve_lmcache.engine import failures, process

def worker():
    process.prepare()
    try:
        raise ValueError("the tensor of redis://:hunter2@h\\n has no room")
    except ValueError:
        logging.getLogger("vllm.v1.executor.multiproc_executor").exception("WorkerProc failed.")

def core():
    process.prepare()
    child = multiprocessing.get_context("spawn").Process(target=worker)
    child.start()
    child.join()
    logger = logging.getLogger("vllm.v1.engine.core")
    try:
        raise RuntimeError("WorkerProc initialization failed. See stack trace for root cause.")
    except RuntimeError:
        logger.exception("EngineCore failed to start.")
        raise

if __name__ == "__main__":
    process.mark_server(os.environ, None)
    collected = failures.Failures.collect(os.environ)
    child = multiprocessing.get_context("spawn").Process(target=core, name="EngineCore_DP0")
    child.start()
    child.join()
    said = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    print("cause:", collected.cause(said))
    print("left:", collected.directory)
"""
CAUSE = "cause: ValueError: the tensor of redis://:***@h has no room. --log-level=debug shows the"


@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_workers_own_error_is_the_cause(level: str, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    result = subprocess.run(
        [sys.executable, str(tmp_path / "probe.py")],
        env=engine_environment(KSERVE_LMCACHE_LOG_LEVEL=level),
        capture_output=True,
        text=True,
        check=True,
    )
    cause, left = result.stdout.splitlines()
    assert cause.startswith(CAUSE)
    assert "hunter2" not in result.stdout + result.stderr
    assert ("Traceback" in result.stderr) == (level == "debug")
    assert "WorkerProc failed." in result.stderr
    assert not Path(left.removeprefix("left: ")).exists()


def collected(directory: Path, *errors: tuple[float, str]) -> Failures:
    """Errors, each with how many seconds ago it was reported."""
    for number, (seconds, text) in enumerate(errors):
        report = {"time": time.time() - seconds, "text": text}
        (directory / f"1-{number}.json").write_text(json.dumps(report))
    return Failures(directory)


def test_the_first_of_the_last_errors_is_the_cause(tmp_path: Path) -> None:
    errors = [(0.1, "RuntimeError: Executor"), (3600, "no adapter"), (2, "OSError: the cause")]
    found = collected(tmp_path, *errors)
    (tmp_path / "2-0.json").write_text("{half")
    assert found.cause("anything").startswith("OSError: the cause. ")
    found.forget()
    assert found.cause() == ""


def test_an_error_that_the_engine_survives_is_no_cause(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from vllm.v1.engine import core

    assert failures._SURVIVED in inspect.getsource(core)
    before = logging.getLogRecordFactory()
    request.addfinalizer(lambda: logging.setLogRecordFactory(before))
    failures.report_errors({failures.DIRECTORY: str(tmp_path)})

    def fail(name: str, message: str, *arguments: str) -> None:
        try:
            raise LookupError(message)
        except LookupError:
            logging.getLogger(name).exception(message, *arguments)

    fail("vllm.v1.executor.multiproc_executor", "no adapter")
    assert "no adapter" in Failures(tmp_path).cause()
    fail("vllm.v1.engine.core", failures._SURVIVED, "add_lora")
    assert Failures(tmp_path).cause() == ""
    fail("vllm.v1.executor.multiproc_executor", "no memory")
    assert "no memory" in Failures(tmp_path).cause()


@pytest.mark.parametrize(
    ("said", "codes", "cause"),
    [
        ("Failed core proc(s): {'EngineCore_DP0': -9}", {}, "EngineCore_DP0 was killed by SIGKILL"),
        (
            "",
            {"EngineCore_DP0": -9, "Other": 0},
            "EngineCore_DP0 was killed by SIGKILL. If the mem",
        ),
        ("", {"EngineCore_DP0": 3}, "EngineCore_DP0 ended with exit code 3"),
        ("", {"EngineCore_DP0": -77}, "EngineCore_DP0 was killed by signal 77"),
        ("ValueError: a\n  b", {}, "ValueError: a b. "),
        ("See root cause above. Failed core proc(s): {}", {}, ""),
        ("", {}, ""),
    ],
)
def test_without_a_report(said: str, codes: dict[str, int], cause: str) -> None:
    found = NOBODY.cause(said, codes)
    assert found.startswith(cause)
    assert bool(found) == bool(cause)
    assert "Failed core" not in found


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("ImportError: cannot import name 'a' from 'b'", "Install the package"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/x'", "Mount a larger volume"),
        ("ValueError: No available memory for the cache blocks.", "Lower --max-model-len"),
        ("torch.OutOfMemoryError: CUDA out of memory", "raise the container's memory limit"),
        ("Worker proc VllmWorker-0 died unexpectedly, shutting down", "raise the container's"),
        ("KeyError: 'x'", "--log-level=debug shows the traceback"),
    ],
)
def test_every_cause_has_a_fix(tmp_path: Path, text: str, fix: str) -> None:
    assert fix in collected(tmp_path, (0, text)).cause()


def test_a_cause_is_a_sentence_and_no_book(tmp_path: Path) -> None:
    assert len(NOBODY.cause("x" * 10_000)) < 800
