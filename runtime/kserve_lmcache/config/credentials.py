"""The address and the credentials of the remote store, from all the places that may hold them."""

from __future__ import annotations

from pathlib import Path

from kserve_lmcache.config import store_url
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.store_url import StoreURL, StoreURLError
from kserve_lmcache.config.stores import LARGEST_FILE, Remote, password_of, without_line_end


def remote_of(configuration: Configuration) -> Remote | None:
    """The remote store of the configuration. Adds the problems of its credentials and files.

    Returns:
        None when the configuration has no ``remote_url``, or one that the rules refuse.
    """
    url = configuration.get("remote_url")
    if not url:
        return None
    try:
        parsed = store_url.parse(url)
    except StoreURLError:
        parsed = StoreURL("", "")
    if parsed.password and configuration.source("remote_url").startswith("--"):
        configuration.add_problem(
            "remote_url",
            "has a password on the command line, which every process can read",
            "Use LMCACHE_REMOTE_PASSWORD or LMCACHE_REMOTE_PASSWORD_FILE.",
        )
    username = _setting_or_url(configuration, "remote_username", parsed.username)
    password, password_file = _password(configuration, "remote_password", parsed.password)
    sentinel_password, sentinel_file = _password(configuration, "remote_sentinel_password")
    if parsed.username and not (password or configuration.get("remote_password_file")):
        configuration.add_problem(
            "remote_url",
            "names a user without a password",
            "Set LMCACHE_REMOTE_PASSWORD. If it is the password, write a colon before it.",
        )
        username = None  # perhaps the password
    for name in ("remote_ca_file", "remote_cert_file", "remote_key_file"):
        _read(configuration, name)
    if not parsed.scheme:
        return None
    return Remote(
        url=parsed.bare,
        source=configuration.source("remote_url"),
        username=username,
        password=password,
        password_file=password_file,
        ca_file=configuration.get("remote_ca_file"),
        cert_file=configuration.get("remote_cert_file"),
        key_file=configuration.get("remote_key_file"),
        sentinel_username=configuration.get("remote_sentinel_username"),
        sentinel_password=sentinel_password,
        sentinel_password_file=sentinel_file,
    )


def check_admin_key(configuration: Configuration) -> None:
    """Add a problem where the file of ``cache_admin_key_file`` has no key."""
    if _password_in_file(configuration, "cache_admin_key_file") == "":
        configuration.add_problem("cache_admin_key_file", "is empty", "Write the key into it.")


def _setting_or_url(configuration: Configuration, name: str, in_url: str | None) -> str | None:
    """The value of the setting or of the URL. Adds a problem when they differ."""
    setting: str | None = configuration.get(name)
    if setting and in_url and setting != in_url:
        configuration.add_problem(name, "contradicts remote_url", "Keep one of them.")
    return setting or in_url


def _password(
    configuration: Configuration, name: str, in_url: str | None = None
) -> tuple[str | None, str | None]:
    """The password of a setting, of its file or of the URL; and the file, if it is from there."""
    if setting := configuration.get(name):
        setting = without_line_end(setting)
        if fault := store_url.fault_of_password(setting):
            configuration.add_problem(name, *fault)
            setting = None
        elif in_url and setting != in_url:
            configuration.add_problem(name, "contradicts remote_url", "Keep one of them.")
    password = setting or in_url
    from_file = _password_in_file(configuration, f"{name}_file")
    if from_file is None:
        return password, None
    if not from_file and not password:
        configuration.add_problem(
            f"{name}_file", "is empty", "Write the password into it, or leave it out."
        )
        return None, None
    if password and password != from_file:
        others = f"{name} or remote_url" if name == "remote_password" else name
        configuration.add_problem(
            f"{name}_file", f"holds another password than {others}", "Keep one of them."
        )
    return from_file or None, configuration.get(f"{name}_file") if from_file else None


def _password_in_file(configuration: Configuration, name: str) -> str | None:
    content = _read(configuration, name)
    if content is None:
        return None
    try:
        password = password_of(content)
    except UnicodeDecodeError:
        configuration.add_problem(name, *store_url.NOT_TEXT)
        return None
    if fault := store_url.fault_of_password(password):
        configuration.add_problem(name, *fault)
        return None
    return password


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
