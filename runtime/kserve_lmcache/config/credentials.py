"""The address and the credentials of the remote store, from all the places that may hold them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.stores import LARGEST_FILE, Remote, password_of

_NOT_TEXT = ("is not UTF-8", "Write the password as text.")


def remote_of(configuration: Configuration) -> Remote | None:
    """The remote store of the configuration. Adds the problems of its credentials and files.

    Returns:
        None when the configuration has no ``remote_url``.
    """
    url = configuration.get("remote_url")
    if not url:
        return None
    source = configuration.source("remote_url")
    bare, username, password = _split(url)
    if password and source.startswith("--"):
        configuration.add_problem(
            "remote_url",
            "has a password on the command line, which every process can read",
            "Use LMCACHE_REMOTE_PASSWORD or LMCACHE_REMOTE_PASSWORD_FILE.",
        )
    username = _setting_or_url(configuration, "remote_username", username)
    password = _setting_or_url(configuration, "remote_password", password)
    if password and not _is_text(password):
        configuration.add_problem("remote_password", *_NOT_TEXT)
        password = None
    from_file = _password_file(configuration)
    if from_file is not None:
        if password and password != from_file:
            configuration.add_problem(
                "remote_password_file",
                "holds another password than remote_password or remote_url",
                "Keep one of them.",
            )
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
    """The URL without credentials, the user and the password."""
    try:
        netloc = urlsplit(url).netloc
    except ValueError:  # the rules refuse such a URL
        return url, None, None
    credentials, at, host = netloc.rpartition("@")
    if not at:
        return url, None, None
    user, _, password = credentials.partition(":")
    return url.replace(netloc, host, 1), unquote(user) or None, unquote(password) or None


def _setting_or_url(configuration: Configuration, name: str, in_url: str | None) -> str | None:
    """The value of the setting or of the URL. Adds a problem when they differ."""
    setting: str | None = configuration.get(name)
    if setting and in_url and setting != in_url:
        configuration.add_problem(name, "contradicts remote_url", "Keep one of them.")
    return setting or in_url


def _is_text(value: str) -> bool:
    """Whether UTF-8 can encode the value. Python reads other bytes of a variable as surrogates."""
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
        configuration.add_problem("remote_password_file", *_NOT_TEXT)
        return None


def _read(configuration: Configuration, name: str) -> bytes | None:
    """The start of the file that a setting names. Adds a problem when it cannot be read."""
    path = configuration.get(name)
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            return file.read(LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        configuration.add_problem(
            name,
            f"{path!r} cannot be read ({reason})",
            "Mount the file so that this process may read it.",
        )
        return None
