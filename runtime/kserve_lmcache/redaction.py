"""What must not be shown, and how it is shown instead."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

REDACTED = "***"

_SECRET_NAME = re.compile(
    r"(^|_)pass(word|wd|phrase)?($|_)|secret|token($|_)(?!s)|credential|(api|access|private|account)_?key"
    r"|connection_?string|sas($|_)",
    re.IGNORECASE,
)
# user:password@ of a URL; a password may hold any character but the last @ ends it.
_URL_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<who>[^/?#\s'\"]*)@", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Whether a key's name says that its value is a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(value: Any, name: str = "") -> Any:
    """``value`` as it may be shown: passwords in URLs and values of secret names as ``***``."""
    if isinstance(value, Mapping):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [redact(inner, name) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name) and value != "":
        return REDACTED
    return redact_urls(value) if isinstance(value, str) else value


def redact_urls(text: str) -> str:
    """``text`` with the password, or the lone user, of every URL in it hidden."""

    def replace(match: re.Match[str]) -> str:
        user, colon, _ = match["who"].partition(":")
        return f"{match['scheme']}{user + ':' if colon else ''}{REDACTED}@"

    return _URL_CREDENTIALS.sub(replace, text)


def secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Every secret in ``value``, as it is written and as it is meant."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from secrets_in(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from secrets_in(inner, name)
    elif is_secret_name(name) and isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, str) and value:
        if is_secret_name(name):
            yield value
        for match in _URL_CREDENTIALS.finditer(value):
            _, _, password = match["who"].rpartition(":")
            yield from {password, unquote(password)} - {""}


def redact_logs(secrets: Iterable[str]) -> None:
    """Keep secrets out of every log record of this process, whichever library writes it.

    LMCache logs the URLs that it is given, passwords included.
    """
    wanted = sorted({secret for secret in secrets if len(secret) > 1}, key=len, reverse=True)
    if not wanted:
        return
    pattern = re.compile("|".join(map(re.escape, wanted)))
    make = logging.getLogRecordFactory()

    def make_without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # the caller's mistake; logging reports it itself
            return record
        if pattern.search(message):
            record.msg, record.args = pattern.sub(REDACTED, message), ()
        if record.exc_info:
            # Formatters take this text where it is there already.
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = pattern.sub(REDACTED, text)
        return record

    logging.setLogRecordFactory(make_without_secrets)
