"""Renders the chart with Helm's own engine, from a wheel of the test requirements."""

from __future__ import annotations

from typing import Any

import helm_python

from tests.packaging.manifests import RUNTIMES, load
from tests.packaging.pods import Document

CHART = RUNTIMES / "chart"


def documents(values: dict[str, Any]) -> list[Document]:
    """What ``helm install`` would send.

    Raises:
        helm_python.HelmError: the values do not meet the schema, or a template fails.
    """
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name="any", namespace="models")
    return [document for text in rendered.values() for document in load(text)]


def complaints(values: dict[str, Any]) -> list[str]:
    """What ``helm lint --strict`` has to say."""
    report = helm_python.lint(CHART, values, strict=True)
    return [message["error"] for message in report["messages"] if message["severity"] > 1]
