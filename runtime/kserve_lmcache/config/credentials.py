"""The remote store's address and credentials, each from its own place, as one :class:`Remote`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.stores import LARGEST_FILE, Remote, password_of
from kserve_lmcache.errors import Problem

_NO_TEXT = ("is not UTF-8", "Write the password as text.")


def remote_of(configuration: Configuration) -> Remote | None:
    """The remote store that is asked for; what is wrong with it goes to the problems."""
    url = configuration.get("remote_url")
    if not url:
        return None
    source = configuration.source("remote_url")
    bare, username, password = _split(url)
    if password and source.startswith("--"):
        what = "has a password on the command line, where every process sees it"
        fix = "Use LMCACHE_REMOTE_PASSWORD or LMCACHE_REMOTE_PASSWORD_FILE."
        _refuse(configuration, "remote_url", what, fix)
    username = _one(configuration, "remote_username", username)
    password = _one(configuration, "remote_password", password)
    if password and not _is_text(password):
        _refuse(configuration, "remote_password", *_NO_TEXT)
        password = None
    from_file = _password_file(configuration)
    if from_file is not None:
        if password and password != from_file:
            what = "contradicts another password"
            _refuse(configuration, "remote_password_file", what, "Keep one of them.")
        password = from_file
    for name in ("remote_ca_file", "remote_cert_file", "remote_key_file"):
        _read(configuration, name)
    return Remote(
        url=bare,
        source=source,
        username=username,
        password=password,
        password_file=configuration.get("remote_password_file") if from_file else None,
        ca_file=configuration.get("remote_ca_file"),
        cert_file=configuration.get("remote_cert_file"),
        key_file=configuration.get("remote_key_file"),
    )


def _split(url: str) -> tuple[str, str | None, str | None]:
    """The URL without credentials, its user and its password."""
    try:
        netloc = urlsplit(url).netloc
    except ValueError:  # refused by the rules
        return url, None, None
    who, at, where = netloc.rpartition("@")
    if not at:
        return url, None, None
    user, _, password = who.partition(":")
    return url.replace(f"{netloc}", where, 1), unquote(user) or None, unquote(password) or None


def _one(configuration: Configuration, name: str, in_url: str | None) -> str | None:
    own: str | None = configuration.get(name)
    if own and in_url and own != in_url:
        what = "contradicts remote_url, which holds another"
        _refuse(configuration, name, what, "Keep one of them.")
    return own or in_url


def _is_text(value: str) -> bool:
    """Whether it can be sent; a variable's bytes that are not UTF-8 come as lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _password_file(configuration: Configuration) -> str | None:
    content = _read(configuration, "remote_password_file")
    if content is None:
        return None
    try:
        return password_of(content)
    except UnicodeDecodeError:
        _refuse(configuration, "remote_password_file", *_NO_TEXT)
        return None


def _read(configuration: Configuration, name: str) -> bytes | None:
    """The start of a file that a setting names; what is wrong with it goes to the problems."""
    path = configuration.get(name)
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            return file.read(LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fix = "Mount it, and let uid 1000 read it."
        _refuse(configuration, name, f"{path!r} cannot be read ({reason})", fix)
        return None


def _refuse(configuration: Configuration, name: str, what: str, fix: str) -> None:
    problem = Problem(f"{name} {what}", configuration.source(name), fix)
    configuration.problems.append(problem)
