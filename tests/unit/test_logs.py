"""Log levels and formats, each in a process of its own: loggers are the whole process's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.config import engine_file
from tests.support.server import engine_environment

JSON_PROBE = """
import logging
early = logging.getLogger("early")
early.setLevel("INFO")
early.propagate = False
early.addHandler(logging.StreamHandler())
from kserve_lmcache import logs, redaction
logs.configure({"KSERVE_LMCACHE_LOG_FORMAT": "json"})
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

START = """
import logging, os
from kserve_lmcache import logs
levels = logs.LibraryLevels(os.environ)
levels.set(os.environ.get("KSERVE_LMCACHE_LOG_LEVEL", "info"))
logs.configure(os.environ)
"""
# As LMCache and vLLM make them, whose import takes seconds.
LOGGERS = """
def like_lmcache(name):
    level = os.environ.get("LMCACHE_LOG_LEVEL", "INFO")
    logger, handler = logging.getLogger(name), logging.StreamHandler()
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger
def like_vllm(name):
    parent, handler = logging.getLogger("vllm"), logging.StreamHandler()
    handler.setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "INFO"))
    parent.setLevel(handler.level)
    parent.addHandler(handler)
    parent.propagate = False
    return logging.getLogger(name)
"""
REAL_LOGGERS = """
from lmcache.logging import init_logger as like_lmcache
from vllm.logger import init_logger as like_vllm
"""
SPEAK = """
loggers = [
    logging.getLogger("kserve_lmcache.engine.plan"),
    like_lmcache("lmcache.v1.some"),
    like_vllm("vllm.some"),
]
def speak():
    for logger in loggers:
        for level in ("debug", "info", "warning"):
            getattr(logger, level)("said-%s-%s", logger.name.partition(".")[0], level)
"""
LIBRARIES = f"{START}{LOGGERS}{SPEAK}"


def said(probe: str, **environ: str) -> list[str]:
    """What is written: ``LIBRARY-LEVEL``, in order."""
    result = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        text=True,
        check=True,
        env=engine_environment(**environ),
    )
    words = f"{result.stdout}\n{result.stderr}".split()
    return sorted(word.removeprefix("said-") for word in words if word.startswith("said-"))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"kserve_lmcache-info"}),
        ({"KSERVE_LMCACHE_LOG_LEVEL": "warning"}, set()),
        ({"KSERVE_LMCACHE_LOG_LEVEL": "nonsense"}, {"kserve_lmcache-info"}),
        ({"VLLM_LOGGING_LEVEL": "INFO"}, {"kserve_lmcache-info", "vllm-info"}),
        (
            {"LMCACHE_LOG_LEVEL": "DEBUG"},
            {"kserve_lmcache-info", "lmcache-info", "lmcache-debug"},
        ),
        (
            {"KSERVE_LMCACHE_LOG_LEVEL": "debug"},
            {
                f"{library}-{level}"
                for library in ("kserve_lmcache", "lmcache", "vllm")
                for level in ("debug", "info")
            },
        ),
    ],
)
def test_levels(environ: dict[str, str], expected: set[str]) -> None:
    warnings = {f"{library}-warning" for library in ("kserve_lmcache", "lmcache", "vllm")}
    assert said(f"{LIBRARIES}\nspeak()", **environ) == sorted(expected | warnings)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["vllm-warning"]),
        ({"KSERVE_LMCACHE_LOG_LEVEL": "debug"}, ["vllm-warning"] * 2),
        ({"VLLM_LOGGING_LEVEL": "INFO"}, ["vllm-warning"] * 2),
    ],
)
def test_a_process_of_the_engine_does_not_warn_again(
    environ: dict[str, str], expected: list[str]
) -> None:
    speak = """
logs.leave_out_repetitions(os.environ)
for name in ("vllm.config.vllm", "vllm.v1.worker"):
    like_vllm(name).warning("said-vllm-warning")
    logging.getLogger("vllm").handlers.clear()
"""
    assert said(f"{START}{LOGGERS}{speak}", **environ) == expected


def test_warnings_of_libraries_are_left_out_unless_python_is_asked_for_them() -> None:
    warn = f"""{START}
import warnings
warnings.warn("said-vllm-warning", FutureWarning)
"""
    assert said(warn) == []
    assert said(warn, PYTHONWARNINGS="error:another message") == []
    assert said(warn, PYTHONWARNINGS="default") == ["vllm-warning"]


def test_a_level_that_comes_later_reaches_loggers_that_exist() -> None:
    later = 'levels.set("debug"); logs.set_level("debug"); speak()'
    assert len(said(f"{LIBRARIES}\n{later}")) == 9
    assert len(said(f"{LIBRARIES}\n{later}", VLLM_LOGGING_LEVEL="ERROR")) == 6


def test_the_libraries_own_loggers_follow() -> None:
    # vLLM 0.32 configures its logger when it is told to, not when it is imported.
    own = "import argparse\nfrom kserve_lmcache.compat.vllm import configure_logging"
    later = 'levels.set("debug"); configure_logging(argparse.Namespace())'
    later += '; logs.set_level("debug"); speak()'
    found = said(f"{START}{REAL_LOGGERS}{own}\n{SPEAK}\nspeak(); {later}")
    assert len(found) == 4 + 9
    assert found.count("vllm-info") == found.count("lmcache-info") == 1


def test_a_flag_may_ask_for_the_records_of_one_library() -> None:
    assert "vllm-info" in said(f'{LIBRARIES}\nlevels.set("info", ["vllm"]); speak()')


def test_a_file_that_does_not_name_this_package_leaves_its_records_beside_kserves() -> None:
    probe = f"""{LIBRARIES}
import logging.config
def configure():
    logging.config.dictConfig({{
        "version": 1,
        "formatters": {{"of-the-file": {{"format": "said-file-%(message)s"}}}},
        "handlers": {{"out": {{"class": "logging.StreamHandler", "formatter": "of-the-file"}}}},
        "loggers": {{"kserve": {{"handlers": ["out"], "level": "WARNING"}}}},
    }})
logs.configure_by_file(configure)
loggers[0].info("info")
loggers[0].warning("warning")
"""
    assert said(probe) == ["file-warning"]


def test_a_file_may_name_this_package() -> None:
    probe = f"""{LIBRARIES}
import logging.config
def configure():
    logging.config.dictConfig({{
        "version": 1,
        "formatters": {{"of-the-file": {{"format": "said-file-%(message)s"}}}},
        "handlers": {{"out": {{"class": "logging.StreamHandler", "formatter": "of-the-file"}}}},
        "loggers": {{"kserve_lmcache": {{"handlers": ["out"], "level": "DEBUG"}}}},
    }})
logs.configure_by_file(configure)
loggers[0].debug("debug")
"""
    assert said(probe) == ["file-debug"]


def test_every_record_is_one_line_of_json_without_secrets() -> None:
    result = subprocess.run([sys.executable, "-c", JSON_PROBE], capture_output=True, text=True)
    assert "pass-word-1" not in result.stderr
    first, second = (json.loads(line) for line in result.stderr.splitlines())
    assert (first["logger"], first["level"], first["message"]) == ("early", "INFO", "one\ntwo ***")
    assert "request_id" not in first
    assert (second["logger"], second["request_id"]) == ("late", "mine-7")
    assert "ValueError: ***" in second["exception"]


def test_a_logger_that_gets_handlers_later_writes_json_too() -> None:
    """vLLM configures its logger again in each process of the engine, LMCache at each import."""
    probe = """
import logging, logging.config, warnings
existing = logging.getLogger("vllm")
from kserve_lmcache import logs
logs.configure({"KSERVE_LMCACHE_LOG_FORMAT": "json"})
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"vllm": {"class": "logging.StreamHandler"}},
    "loggers": {"vllm": {"handlers": ["vllm"], "level": "INFO", "propagate": False}},
})
existing.warning("configured again")
logging.getLogger("vllm.below").warning("below")
warnings.warn("of Python", UserWarning)
"""
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["vllm", "vllm.below", "py.warnings"]


def test_level_and_format_reach_the_engines_processes(tmp_path: Path) -> None:
    environ = {"KSERVE_LMCACHE_LOG_FORMAT": "json", "KSERVE_LMCACHE_LOG_LEVEL": "debug"}
    expected = {**environ, "LMCACHE_CONFIG_FILE": str(tmp_path / "lmcache.yaml")}
    environ["KSERVE_LMCACHE_OFFLOAD"] = "on"
    engine_file.hand_over(tmp_path / "lmcache.yaml", environ)
    assert environ == expected


def test_text_is_left_alone() -> None:
    probe = JSON_PROBE.replace('"json"', '"text"')
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.stderr.startswith("one\ntwo ***")


def test_records_of_lmcache_have_no_colors_where_nobody_sees_them() -> None:
    probe = """
import os
from kserve_lmcache import logs
logs.configure(os.environ)
from lmcache.logging import init_logger
init_logger("lmcache.v1").warning("full")
"""
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert "WARNING full (lmcache.v1:" in result.stderr
    assert "\x1b" not in result.stderr


def test_json_after_text_holds_for_lmcache_too() -> None:
    probe = """
import logging, os
from kserve_lmcache import logs
logging.getLogger("lmcache.early")
logs.configure(os.environ)
logs.use_json()
logging.getLogger("lmcache.early").warning("full")
logging.getLogger("other").warning("full")
"""
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["lmcache.early", "other"]
