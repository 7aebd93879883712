from __future__ import annotations

import logging
import time

import pytest

from kserve_lmcache.errors import Problem
from kserve_lmcache.redaction import (
    hide,
    is_secret_name,
    redact,
    redact_logs,
    redact_text,
    redact_urls,
    secrets_in,
)


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
    ("text", "expected"),
    [
        ("redis://:hun'ter2@h", "redis://:***@h"),
        ("redis://:hun/ter2@h or redis://:a?b#c@h", "redis://:***@h or redis://:***@h"),
        ("at 1redis://:hunter2@h", "at 1redis://:***@h"),
        (":hunter2@h:6379", ":***@h:6379"),
        ("me:hunter2@h:6379", "me:***@h:6379"),
        ("h:6379,password=hunter2", "h:6379,password=***"),
        ("{'password': 'hunter2', 'a': 1}", "{'password': '***', 'a': 1}"),
        ('{"api_key": "hun\\"ter2"}', '{"api_key": "***"}'),
        ("password=None token=", "password=None token="),
        ("remote_password_file=/run/password", "remote_password_file=/run/password"),
        ("registry:5000/image@sha256:0123", "registry:5000/image@sha256:0123"),
        ("min_retrieve_tokens=5", "min_retrieve_tokens=5"),
        ("https://h:1/a@b https://u:hunter2@h/a@b", "https://h:1/a@b https://u:***@b"),
    ],
)
def test_secrets_that_their_place_shows(text: str, expected: str) -> None:
    assert redact_text(text) == expected


@pytest.mark.parametrize("secret", ["on", "cache", "info", "6379", "127.0.0.1", "password", "a1"])
def test_a_common_word_or_number_does_not_shred_a_text(secret: str) -> None:
    text = "on 127.0.0.1:6379 the cache is on; password info: a1"
    assert hide(text, [secret]) == text
    assert hide(f"redis://:{secret}@h password={secret}", [secret]) == (
        "redis://:***@h password=***"
    )
    assert hide(f"unknown command 'AUTH', args '{secret}'", [secret], in_quotes=True).endswith(
        "args '***'"
    )


def test_a_long_record_is_searched_in_little_time() -> None:
    start = time.monotonic()
    for text in ("a" * 10**6, "redis://" + "a:" * 10**5, "a=" * 10**5, "a:b,@" * 10**4):
        redact_text(text)
    assert time.monotonic() - start < 5


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
