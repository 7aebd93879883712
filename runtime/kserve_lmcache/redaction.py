"""Removes secrets from texts, values and log records."""

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
# user:password@ of a URL. A password may have any character, and ends at the last @.
_URL_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^/?#\s'\"]*)@", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Whether the value of a key with this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(value: Any, name: str = "") -> Any:
    """A copy of ``value`` with ``***`` for passwords in URLs and for values of secret names.

    Args:
        value: a plain value, a list or a mapping.
        name: the key of the value.
    """
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
    """``text`` with ``***`` for the password of every URL, or for a user without a password."""

    def replace(match: re.Match[str]) -> str:
        user, colon, _ = match["user"].partition(":")
        return f"{match['scheme']}{user + ':' if colon else ''}{REDACTED}@"

    return _URL_CREDENTIALS.sub(replace, text)


def secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Every secret in ``value``. A password of a URL comes both percent-encoded and decoded."""
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
            _, _, password = match["user"].rpartition(":")
            yield from {password, unquote(password)} - {""}


def redact_logs(secrets: Iterable[str]) -> None:
    """Remove the secrets from every later log record of this process, of any library.

    LMCache logs remote URLs with their passwords.
    """
    longest_first = sorted({secret for secret in secrets if len(secret) > 1}, key=len, reverse=True)
    if not longest_first:
        return
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    make = logging.getLogRecordFactory()

    def make_without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # logging itself reports wrong arguments
            return record
        if pattern.search(message):
            record.msg, record.args = pattern.sub(REDACTED, message), ()
        if record.exc_info:
            # A formatter uses this text instead of making its own.
            text = logging.Formatter().formatException(record.exc_info)
            record.exc_text = pattern.sub(REDACTED, text)
        return record

    logging.setLogRecordFactory(make_without_secrets)
