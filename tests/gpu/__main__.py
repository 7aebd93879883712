"""Run the steps and write the report.

    python -m tests.gpu [--device gpu|cpu] [--wheels DIR] [--output DIR] [--minutes N]

The exit status is 1 when a step failed. The Python that runs this needs no package; with
``--wheels`` it makes an environment for the steps.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.gpu.plan import CORES_OF_A_SERVER, CPU, GPU, Step, device_of_machine, plan
from tests.gpu.processes import StepProcess
from tests.gpu.report import report, write
from tests.gpu.runner import FAILED, Result, Runner
from tests.gpu.wheels import ROOT

_CLOSING = 12.0  # seconds of the whole for the end of the servers and for the report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", CPU, GPU), default="auto")
    parser.add_argument("--wheels", type=Path, help="what `make gpu-wheels` has made")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "gpu-env")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-test")
    parser.add_argument("--minutes", type=float, default=9.5, help="of the whole (9.5)")
    parser.add_argument("--steps", nargs="*", help="names; those that they need run as well")
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    args = parser.parse_args(argv)
    began = time.monotonic()
    device = device_of_machine() if args.device == "auto" else args.device
    steps = chosen(plan(device, is_installed=args.wheels is None), args.steps)
    if args.list:
        print("\n".join(f"{each.name:<22} {each.budget:>4.0f} s  {each.what}" for each in steps))
        return 0
    # The servers end, and the report is written, when this process is told to end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cores = len(os.sched_getaffinity(0))
    at_once = max(1, cores // CORES_OF_A_SERVER)
    python = interpreter(args.wheels, args.environment)
    args.output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    run = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "commit": commit(),
        "machine": f"{platform.machine()}, {cores} cores, {platform.release()}",
        "limit, s": 60 * args.minutes,
    }

    def say(result: Result) -> None:
        results.append(result)
        reason = f": {result.reason}" if result.reason else ""
        print(
            f"{result.step.name:<22} {result.status} ({result.seconds:.1f} s){reason}", flush=True
        )
        save(run, results, began, args.output)

    with tempfile.TemporaryDirectory(prefix="gpu-test-") as name:
        work = Path(name)

        def start(step: Step, file: Path) -> StepProcess:
            command = [str(python), "-m", "tests.gpu.steps", step.module, f"--result={file}"]
            command += [f"--work={work}", f"--name={step.name}", f"--device={device}"]
            command += [f"--argument={step.argument}", f"--at-once={at_once}"]
            if step.name == "install":
                command = [sys.executable, "-m", "tests.gpu.install", str(args.wheels)]
                command += [str(args.environment), str(file)]
            environ = environment(python)
            return StepProcess(step.name, command, work / f"{step.name}.log", environ, ROOT)

        runner = Runner(start, work, 60 * args.minutes - _CLOSING, at_once, say)
        try:
            runner.run(steps)
        except KeyboardInterrupt:
            print("Interrupted", file=sys.stderr)
            run["interrupted"] = "yes"
        order = {step.name: number for number, step in enumerate(steps)}
        results.sort(key=lambda each: order[each.step.name])
        save(run, results, began, args.output)
        with tarfile.open(args.output / "logs.tar.gz", "w:gz", compresslevel=1) as archive:
            for log in sorted(work.rglob("*.log")):
                archive.add(log, log.relative_to(work))
    print(f"The report is {args.output / 'report.md'} ({time.monotonic() - began:.0f} s)")
    return 1 if "interrupted" in run or any(each.status == FAILED for each in results) else 0


def chosen(steps: Sequence[Step], names: Sequence[str] | None) -> list[Step]:
    """The steps of these names, and those that they need; all without names."""
    if names is None:
        return list(steps)
    known = {step.name: step for step in steps}
    for name in names:
        if name not in known:
            raise SystemExit(f"{name} is no step; the steps are {', '.join(known)}")
    wanted = set(names)
    while more := {need for name in wanted for need in known[name].needs} - wanted:
        wanted |= more
    return [step for step in steps if step.name in wanted]


def interpreter(wheels: Path | None, installed: Path) -> Path:
    """The Python of the steps."""
    if wheels is not None:
        return installed.absolute() / "bin" / "python"
    own = ROOT / ".venv" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def environment(python: Path) -> dict[str, str]:
    """Of the steps: its commands are found, the sources are, and no hub is asked."""
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    sources = os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])
    more = {"PATH": path, "PYTHONPATH": sources, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **more}


def commit() -> str:
    """Of the sources, where git is there to say."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def save(run: dict[str, object], results: Sequence[Result], began: float, output: Path) -> None:
    """Write the report as it is now: a machine that is taken away leaves what was known."""
    write(report({**run, "seconds": round(time.monotonic() - began, 1)}, results), output)


if __name__ == "__main__":
    sys.exit(main())
