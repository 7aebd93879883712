"""Removes secrets from texts, values and log records.

Two rules find a secret in a text:

- its place: between ``://`` and ``@``, or behind a name such as ``password``;
- its characters, where the secret is known. A secret that is a number or a word, such as ``on`` or
  ``cache``, is not searched for: every "on" of a log would become ``***``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

REDACTED = "***"

_SECRET_NAME = re.compile(
    r"(^|_)pass(word|wd|phrase)?($|_)(?!file)|(^|_)pwd$|secret|token($|_)(?!s)|credential"
    r"|(api|access|private|account)_?key|connection_?string|sas($|_)|(^|_)sig(nature)?$",
    re.IGNORECASE,
)
# What stands between :// and the last @ before a blank. A password may have any character, and a
# text may quote a URL that no grammar takes apart. Each pattern starts at the start of a word: a
# record may be megabytes long.
_URL_CREDENTIALS = re.compile(
    r"(?<![a-z0-9+.-])(?P<scheme>[a-z0-9+.-]+)://(?P<user>\S*)@", re.IGNORECASE
)
# A web address may have an @ in its path.
_WEB_ADDRESS = re.compile(r"(\[[0-9a-f:.]*\]|[a-z0-9._-]*)(:\d+)?[/?#].*", re.IGNORECASE)
# user:password@host without a scheme, and not the digest of an image.
_CREDENTIALS = re.compile(
    r"(?P<before>^|[\s'\"(=,])(?P<user>[^\s:/@'\"(=,]{0,256}):(?P<password>[^\s@/][^\s@]{0,1024})@"
    r"(?=[\w\[])(?!sha256:)"
)
# name=value, and 'name': value as Python and JSON write mappings.
_NAMED = re.compile(
    r"(?<![\w.-])(?P<name>[\w.-]+)(?P<sign>=|['\"]\s*:\s*)"
    r"(?P<value>'[^']*'|\"(?:[^\"\\]|\\.)*\"|[^\s'\",;&}\])]+)"
)
_NOTHING = ("None", "null", "True", "False", "true", "false", REDACTED, f"'{REDACTED}'", "''", '""')
_NUMBER = re.compile(r"[\d.,:-]+")
# The least length of a secret that is searched for, by its characters.
_LEAST_LENGTHS = ((re.compile(r"[A-Za-z_. -]+"), 24), (re.compile(r"[A-Za-z0-9_. -]+"), 6))
_LEAST_LENGTH = 4


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
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """``text`` with ``***`` for every secret that its place shows to be one."""
    text = redact_urls(text)
    if "@" in text:
        text = _CREDENTIALS.sub(rf"\g<before>\g<user>:{REDACTED}@", text)
    return _NAMED.sub(_without_value, text)


def _without_value(match: re.Match[str]) -> str:
    value: str = match["value"]
    if not is_secret_name(match["name"]) or value in _NOTHING:
        return match[0]
    mark = value[0] if value[0] in "'\"" else ""
    return f"{match['name']}{match['sign']}{mark}{REDACTED}{mark}"


def redact_urls(text: str) -> str:
    """``text`` with ``***`` for the password of every URL, or for a user without a password."""

    def replace(match: re.Match[str]) -> str:
        is_web = match["scheme"].lower() in ("http", "https")
        if is_web and _WEB_ADDRESS.fullmatch(match["user"]):
            return match[0]
        user, colon, _ = match["user"].partition(":")
        return f"{match['scheme']}://{user + ':' if colon else ''}{REDACTED}@"

    return _URL_CREDENTIALS.sub(replace, text) if "://" in text else text


def hide(text: str, secrets: Iterable[str] = (), in_quotes: bool = False) -> str:
    """``text`` without secrets: those of :func:`redact_text`, and those that are known.

    Args:
        text: any text.
        secrets: as they are meant. They are found percent-encoded and escaped as well.
        in_quotes: also hide a word that stands in quotes alone. Servers repeat the arguments of
            commands so.
    """
    pattern = _pattern(secrets, in_quotes)
    text = redact_text(text)
    return pattern.sub(REDACTED, text) if pattern else text


def _pattern(secrets: Iterable[str], in_quotes: bool = False) -> re.Pattern[str] | None:
    """A pattern of all forms of the secrets; ``None`` when there is nothing to search for."""
    forms: set[str] = set()
    words: set[str] = set()
    for secret in secrets:
        several = {secret, repr(secret)[1:-1], quote(secret), quote(secret, safe="")}
        (forms if _is_distinctive(secret) else words).update(several)
    longest_first = sorted(filter(None, forms), key=len, reverse=True)
    parts = [re.escape(form) for form in longest_first]
    if in_quotes and words:
        either = "|".join(map(re.escape, sorted(filter(None, words), key=len, reverse=True)))
        parts.append(rf"(?<=['\"`])(?:{either})(?=['\"`])")
    return re.compile("|".join(parts)) if parts else None


def _is_distinctive(secret: str) -> bool:
    """Whether the characters of a secret are in no text by accident."""
    if _NUMBER.fullmatch(secret):
        return False
    lengths = (length for characters, length in _LEAST_LENGTHS if characters.fullmatch(secret))
    return len(secret) >= next(lengths, _LEAST_LENGTH)


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


def redact_logs(secrets: Iterable[str] = ()) -> None:
    """Remove secrets from every later log record of this process, of any library.

    Libraries log URLs with their passwords, and LMCache its whole configuration.

    Args:
        secrets: known ones. Those that their place shows are removed without being known.
    """
    pattern = _pattern(secrets)
    make = logging.getLogRecordFactory()

    def without_secrets(text: str) -> str:
        text = redact_text(text)
        return pattern.sub(REDACTED, text) if pattern else text

    def make_without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # logging itself reports wrong arguments
            return record
        if (hidden := without_secrets(message)) != message:
            record.msg, record.args = hidden, ()
        if record.exc_info and record.exc_info[0] is not None:
            # A formatter uses this text instead of making its own.
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_text = without_secrets(text)
        return record

    logging.setLogRecordFactory(make_without_secrets)
