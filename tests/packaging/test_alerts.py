"""Each alert is raised where it should be, and not before, by Prometheus's own reading of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from kserve_lmcache.metrics.registry import Counter, Histogram
from kserve_lmcache.metrics.table import PREFIX, TABLE
from tests.packaging.manifests import MONITORING, alert_groups

CASES = Path(__file__).with_name("alerts.yaml")


def promtool(*arguments: str, directory: Path) -> str:
    command = shutil.which("promtool")
    assert command, "promtool is not installed: see requirements/debian.txt"
    ran = subprocess.run(
        [command, *arguments], cwd=directory, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_case_is_as_prometheus_sees_it(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": alert_groups()}))
    shutil.copy(CASES, tmp_path)
    promtool("check", "rules", "rules.yaml", directory=tmp_path)
    promtool("test", "rules", CASES.name, directory=tmp_path)


def test_every_alert_has_a_case_in_which_it_is_raised_and_one_in_which_it_is_not() -> None:
    alerts = {
        rule["alert"] for group in alert_groups() for rule in group["rules"] if "alert" in rule
    }
    tried = [
        one
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for one in case["alert_rule_test"]
    ]
    assert {one["alertname"] for one in tried if one.get("exp_alerts")} == alerts
    assert {one["alertname"] for one in tried if not one.get("exp_alerts")} == alerts


def test_rules_and_dashboard_name_no_metric_of_ours_that_there_is_not() -> None:
    there = set()
    for row in TABLE:
        there.add(PREFIX + row.name)
        if row.kind is Histogram:
            there |= {f"{PREFIX}{row.name}_{part}" for part in ("bucket", "count", "sum")}
        assert (row.kind is Counter) == row.name.endswith("_total")
    rules = json.dumps(alert_groups())
    dashboard = (MONITORING / "kserve-lmcache.json").read_text()
    for text in (rules, dashboard):
        named = set(re.findall(rf"\b{PREFIX}\w+", text))
        assert len(named) > 5
        assert named <= there
