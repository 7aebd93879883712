"""``doctor --engine``: the copy on the device, without an engine."""

from __future__ import annotations

import json

from benchmarks.contenders import MODEL

from tests.gpu.plan import GPU
from tests.gpu.steps.context import Context, StepError


def run(context: Context) -> None:
    arguments = ["-m", "kserve_lmcache", "doctor", "--engine", "--json", f"--model_id={MODEL}"]
    findings = json.loads(context.ask([*arguments, "--timeout=80"], {}).stdout)["findings"]
    context.tables["Findings"] = [
        {"check": each["name"], "status": each["status"], "evidence": each["evidence"]}
        for each in findings
    ]
    failures = [each["evidence"] for each in findings if each["status"] == "failure"]
    if failures:
        raise StepError("; ".join(failures))
    place = "on cuda, " if context.device == GPU else "on cpu, "
    copies = [each["evidence"] for each in findings if place in each["evidence"]]
    if not any("came back" in each for each in copies):
        raise StepError(f"no finding says that the copy came back {place.rstrip(', ')}")
