from __future__ import annotations

import logging

import pytest

from kserve_lmcache.errors import Problem
from kserve_lmcache.redaction import is_secret_name, redact, redact_logs, redact_urls, secrets_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://:hunter2@redis:6379", "redis://:***@redis:6379"),
        ("redis://user:hunter2@redis:6379/0", "redis://user:***@redis:6379/0"),
        ("redis://hunter2@redis:6379", "redis://***@redis:6379"),
        ("redis://u:p@ss:w@rd@redis", "redis://u:***@redis"),
        ("redis-sentinel://u:hunter2@a:1,b:2/main", "redis-sentinel://u:***@a:1,b:2/main"),
        ("from rediss://u:hunter2@a to lm://b:1", "from rediss://u:***@a to lm://b:1"),
        ("https://example.org/?q=a@b", "https://example.org/?q=a@b"),
        ("somebody@example.org", "somebody@example.org"),
    ],
)
def test_passwords_in_urls(text: str, expected: str) -> None:
    assert redact_urls(text) == expected
    assert redact({"a": [text]}) == {"a": [expected]}


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "remote_password",
        "valkey_password",
        "aws_secret_access_key",
        "hf_token",
        "token",
        "api_key",
        "azure_connection_string",
        "credentials",
        "sasl_passwd",
    ],
)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "hunter2"}) == {name: "***"}
    assert list(secrets_in({name: "hunter2"})) == ["hunter2"]


@pytest.mark.parametrize("name", ["min_retrieve_tokens", "chunk_size", "bypass", "bypass_x"])
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)
    assert redact({name: 5}) == {name: 5}


def test_every_secret_is_found_as_written_and_as_meant() -> None:
    values = {"remote_url": "redis://u:p%40ss@redis", "extra_config": {"a_token": "t0", "b": "c"}}
    assert set(secrets_in(values)) == {"p%40ss", "p@ss", "t0"}
    assert list(secrets_in({"pin_token": 271828, "secret_on": True})) == ["271828"]


def test_a_problem_shows_no_password() -> None:
    problem = Problem("remote_url 'redis://:hunter2@x' is wrong", "here", "Fix redis://a:b@c.")
    assert str(problem) == "here: remote_url 'redis://:***@x' is wrong. Fix redis://a:***@c."


def test_no_log_record_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    factory = logging.getLogRecordFactory()
    logger = logging.getLogger("some.library")
    try:
        redact_logs(["hunter2", "p@ss"])
        logger.error("Creating connector for %s with %d", "redis://:hunter2@x", 3)
        logger.error("p@ss and hunter2")
        logger.error({"password": "hunter2"})
        # A caller's mistake stays for logging to report.
        logging.getLogRecordFactory()("name", 10, "path", 1, "%d", ("text",), None)
        try:
            raise ValueError("hunter2 is wrong")
        except ValueError:
            logger.exception("It failed")
    finally:
        logging.setLogRecordFactory(factory)
    assert "Creating connector for redis://:***@x with 3" in caplog.text
    assert "*** and ***" in caplog.text
    assert "ValueError: *** is wrong" in caplog.text
    assert "hunter2" not in caplog.text
    assert "p@ss" not in caplog.text
