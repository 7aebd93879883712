"""The remote store's address and credentials, each from its own place, as one :class:`Remote`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.errors import Problem
from kserve_lmcache.remote import Remote


def remote_of(configuration: Configuration) -> Remote | None:
    """The remote store that is asked for; what is wrong with it goes to the problems."""
    url = configuration.get("remote_url")
    if not url:
        return None
    source = configuration.source("remote_url")
    bare, username, password = _split(url)
    if password and source.startswith("--"):
        configuration.problems.append(
            Problem(
                "remote_url has a password on the command line, where every process sees it",
                source,
                "Use LMCACHE_REMOTE_PASSWORD or LMCACHE_REMOTE_PASSWORD_FILE.",
            )
        )
    username = _one(configuration, "remote_username", username)
    password = _one(configuration, "remote_password", password)
    from_file = _password_file(configuration)
    if from_file is not None:
        if password and password != from_file:
            configuration.problems.append(
                Problem(
                    "remote_password_file contradicts another password",
                    configuration.source("remote_password_file"),
                    "Keep one of them.",
                )
            )
        password = from_file
    for name in ("remote_ca_file", "remote_cert_file", "remote_key_file"):
        _check_readable(configuration, name)
    return Remote(
        url=bare,
        source=source,
        username=username,
        password=password,
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
        what = f"{name} contradicts remote_url, which holds another"
        configuration.problems.append(
            Problem(what, configuration.source(name), "Keep one of them.")
        )
    return own or in_url


def _password_file(configuration: Configuration) -> str | None:
    path = configuration.get("remote_password_file")
    if not path or not _check_readable(configuration, "remote_password_file"):
        return None
    # Editors and "echo" end a file with a newline, which is no part of the password.
    return Path(path).read_text("utf-8", errors="surrogateescape").rstrip("\r\n")


def _check_readable(configuration: Configuration, name: str) -> bool:
    path = configuration.get(name)
    if not path:
        return True
    try:
        with Path(path).open("rb"):
            return True
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"{name} {path!r} cannot be read ({reason})"
        configuration.problems.append(
            Problem(what, configuration.source(name), "Mount it, and let uid 1000 read it.")
        )
        return False
