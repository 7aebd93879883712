"""JSON logs, in a process of their own: loggers are the whole process's."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import logging
early = logging.getLogger("early")
early.setLevel("INFO")
early.propagate = False
early.addHandler(logging.StreamHandler())
from kserve_lmcache import logs, redaction
logs.follow({"KSERVE_LMCACHE_LOG_FORMAT": "json"})
redaction.redact_logs(["pass-word-1"])
early.info("one\\ntwo %s", "pass-word-1")
late = logging.getLogger("late")
late.propagate = False
late.handlers.clear()
late.addHandler(logging.StreamHandler())  # as LMCache's
logs.REQUEST_ID.set("mine-7")
try:
    raise ValueError("pass-word-1")
except ValueError:
    late.exception("failed")
late.debug("not shown")
"""


def test_every_record_is_one_line_of_json_without_secrets() -> None:
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert "pass-word-1" not in result.stderr
    first, second = (json.loads(line) for line in result.stderr.splitlines())
    assert (first["logger"], first["level"], first["message"]) == ("early", "INFO", "one\ntwo ***")
    assert "request_id" not in first
    assert (second["logger"], second["request_id"]) == ("late", "mine-7")
    assert "ValueError: ***" in second["exception"]


def test_text_is_left_alone() -> None:
    probe = PROBE.replace('"json"', '"text"')
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stderr.startswith("one\ntwo ***")
