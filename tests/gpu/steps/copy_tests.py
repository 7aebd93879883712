"""The property tests of the copy and of the proof, on the device."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from tests.gpu.plan import GPU
from tests.gpu.steps.context import Context, StepError

_TESTS = ("tests/unit/connector/copy", "tests/unit/connector/test_proof.py")


def run(context: Context) -> None:
    file = context.directory() / "junit.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={file}", *_TESTS]
    device = "cuda" if context.device == GPU else "cpu"
    done = context.ask(["-m", "pytest", *options], {"DEVICE": device})
    if not file.exists():
        raise StepError(f"pytest ended with {done.returncode} and without a report")
    cases = [*ElementTree.parse(file).iter("testcase")]  # noqa: S314
    failed = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    context.facts |= {"device of the tests": device, "tests": len(cases), "failed": len(failed)}
    if failed or done.returncode:
        raise StepError("\n".join(failed) or f"pytest ended with {done.returncode}")
