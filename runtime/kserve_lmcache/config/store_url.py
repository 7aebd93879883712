"""The grammar of a store's URL. Nothing else in this package takes such a URL apart.

    SCHEME://[USER[:PASSWORD]@][HOST[:PORT][,HOST[:PORT]…]][/PATH][?OPTION=VALUE[&…]]

The grammar is stricter than that of :mod:`urllib`. A password with a reserved character in it makes
a URL that other parsers take apart in other places, and each of them takes another part for the
password. Such a URL is refused, and no part of it but the scheme is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from kserve_lmcache.redaction import is_secret_name

Address = tuple[str, int]  # host and port
Fault = tuple[str, str]  # what is wrong, after the name of the setting; what to do

# What a scheme's URL has behind the servers.
DATABASE, SERVICE, SOCKET, NOTHING, ANYTHING = "database", "service", "socket", "nothing", "any"


@dataclass(frozen=True)
class Form:
    """What the URL of a scheme may have.

    Attributes:
        port: of a server whose port is not named; ``None``: the URL must name each port.
        servers: the smallest and the largest number of servers.
        path: one of :data:`DATABASE`, :data:`SERVICE`, :data:`SOCKET`, :data:`NOTHING` and
            :data:`ANYTHING`.
        options: the options that are honoured; ``None`` where LMCache's connector decides.
        credentials: whether the URL may have a user and a password.
    """

    port: int | None
    servers: tuple[int, int] = (1, 1)
    path: str = NOTHING
    options: tuple[str, ...] | None = ()
    credentials: bool = False


_MANY = (1, 1000)
_ONE_SERVER = Form(6379, path=DATABASE, options=("db",), credentials=True)
_SENTINELS = Form(26379, _MANY, SERVICE, ("db",), credentials=True)
# The schemes that are taken apart down to the last character. LMCache's connectors read the URLs of
# the other schemes, each in its own way.
FORMS: Final[Mapping[str, Form]] = {
    **dict.fromkeys(("redis", "rediss", "valkey", "valkeys"), _ONE_SERVER),
    **dict.fromkeys(("redis-sentinel", "rediss-sentinel"), _SENTINELS),
    "redis-cluster": Form(6379, _MANY, credentials=True),
    "unix": Form(None, (0, 0), SOCKET, ("db",), credentials=True),
    **dict.fromkeys(("lm", "resp"), Form(None)),
    **dict.fromkeys(("mooncakestore", "infinistore"), Form(None, path=ANYTHING, options=None)),
    # LMCache's reader wants a host and a port before the directory.
    "fs": Form(None, path=ANYTHING, options=None),
}

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\.?", re.IGNORECASE)
_IPV6 = re.compile(r"\[([0-9a-f:.]+)\]", re.IGNORECASE)
# RFC 3986: unreserved, sub-delims, and the colon and the slash of the parts.
_CHARACTERS = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:/?@\[\]%-]*")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_OPTION_NAME = re.compile(r"[a-z][a-z_]*", re.IGNORECASE)
_LARGEST_DATABASE = 2**31 - 1

NOT_TEXT: Fault = ("is not UTF-8", "Write the password as text.")
_ELSEWHERE = "Give the password by LMCACHE_REMOTE_PASSWORD or remote_password_file"
_ENCODE = f"{_ELSEWHERE}, or write / ? # @ % in the password as %2F %3F %23 %40 %25."
# Options of redis-py's URLs, and the setting that does the same.
_SETTINGS = {
    "ssl_ca_certs": "Use remote_ca_file.",
    "ssl_ca_path": "Use remote_ca_file.",
    "ssl_ca_data": "Use remote_ca_file.",
    "ssl_certfile": "Use remote_cert_file.",
    "ssl_keyfile": "Use remote_key_file.",
    "ssl_cert_reqs": "Certificates are always verified: name their authority in remote_ca_file.",
    "ssl_check_hostname": "Host names are always verified: use a name of the certificate.",
    "ssl": "Use rediss:// or valkeys://.",
    "username": "Use LMCACHE_REMOTE_USERNAME.",
    "password": f"{_ELSEWHERE}.",
    "socket_timeout": "Use the settings remote_…_timeout.",
    "socket_connect_timeout": "Use remote_connect_timeout.",
    "timeout": "Use the settings remote_…_timeout.",
}


class StoreURLError(ValueError):
    """The URL does not fit the grammar. ``faults`` has every fault; none quotes the URL."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("; ".join(message for message, _ in faults))


@dataclass(frozen=True)
class StoreURL:
    """The parts of a URL that fits the grammar.

    Attributes:
        scheme: in lower case.
        bare: the URL without user and password, for logs and for clients.
        username: decoded; ``None`` when the URL has none.
        password: decoded; never shown.
        addresses: host and port of every server; empty for a Unix socket, and for a scheme that is
            not in :data:`FORMS`.
        path: decoded; of a Unix socket and of directories.
        service: of sentinels.
        database: number of the database.
        options: the first value of each option, by its name.
    """

    scheme: str
    bare: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    addresses: tuple[Address, ...] = ()
    path: str = ""
    service: str = ""
    database: int = 0
    options: Mapping[str, str] = field(default_factory=dict)


def scheme_of(url: str) -> str:
    """Returns the scheme in lower case; empty when there is none."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else ""


def shown(url: str) -> str:
    """Returns the URL without its password. What does not parse is its scheme alone."""
    try:
        parsed = parse(url)
    except StoreURLError:
        return f"{scheme_of(url)}://…" if scheme_of(url) else "…"
    if parsed.username is None and parsed.password is None:
        return parsed.bare
    scheme, _, rest = parsed.bare.partition("://")
    # People write a password in the place of the user.
    user = parsed.username if parsed.password is not None else "***"
    return f"{scheme}://{user or ''}{':***' if parsed.password is not None else ''}@{rest}"


def parse(url: str) -> StoreURL:
    """Takes a URL apart.

    Raises:
        StoreURLError: the URL does not fit the grammar, or has a part that would be ignored.
    """
    scheme = scheme_of(url)
    if not scheme:
        fix = "Write SCHEME://HOST:PORT, for example redis://HOST:6379."
        raise StoreURLError(("does not begin with a scheme and ://", fix))
    rest = url.partition("://")[2]
    if doubts := list(_faults_of_characters(scheme, rest)):
        raise StoreURLError(*doubts)
    authority, tail = _split_authority(rest)
    credentials, at, servers = authority.rpartition("@")
    faults: list[Fault] = []
    bare, form = f"{scheme}://{servers}{tail}", FORMS.get(scheme)
    username = password = None
    if at:
        if form is not None and form.credentials:
            user, colon, secret = credentials.partition(":")
            username = unquote(user) or None
            password = unquote(secret) or None
            if colon and not secret:
                faults.append(("has an empty password", f"{_ELSEWHERE}, or remove the colon."))
            elif password and (fault := fault_of_password(password, secret[0] in "'\"")):
                faults.append((f"has a password that {fault[0]}", fault[1]))
        else:
            faults.append(
                (
                    "has a user or a password, which only Redis and Valkey take from a URL",
                    "Remove the part before the @; extra_config has the options of other stores.",
                )
            )
    path, _, query = tail.partition("?")
    options = dict(_options(query, form, faults))
    if form is None:
        if faults:
            raise StoreURLError(*faults)
        return StoreURL(scheme, bare, path=unquote(path), options=options)
    addresses = tuple(_addresses(servers, form, scheme, faults))
    service, database = _path(path, options, form, scheme, faults)
    if faults:
        raise StoreURLError(*faults)
    return StoreURL(
        scheme=scheme,
        bare=bare,
        username=username,
        password=password,
        addresses=addresses,
        path=unquote(path),
        service=service,
        database=database,
        options=options,
    )


def parse_addresses(text: str, default_port: int | None = None) -> tuple[Address, ...]:
    """Parses ``HOST[:PORT]``, or several of them separated by commas.

    Raises:
        StoreURLError: a host is missing, a port is missing without a default, or a port is invalid.
    """
    faults: list[Fault] = []
    addresses = tuple(_addresses(text, Form(default_port, _MANY), "", faults))
    if faults:
        raise StoreURLError(*faults)
    return addresses


def fault_of_password(password: str, quotes: bool = True) -> Fault | None:
    """Returns why a password cannot be used as it is; ``None`` when it can.

    Args:
        password: decoded.
        quotes: whether quotes around it are a fault. In a URL, %27 and %22 are meant.

    A server's password may have such characters. Far more often they come from ``echo``, from an
    editor, or from a YAML file with quotes in quotes.
    """
    try:
        password.encode("utf-8")
    except UnicodeEncodeError:  # Python reads other bytes of a variable as surrogates
        return NOT_TEXT
    if any(ord(character) < 32 or ord(character) == 127 for character in password):
        return (
            "has a line break or another control character",
            "Write the password without it, for example by printf %s.",
        )
    if quotes and len(password) > 1 and password[0] == password[-1] and password[0] in "'\"":
        return (
            "is in quotes",
            "Remove the quotes. For a password that has them, write %27 or %22 in remote_url.",
        )
    if password != password.strip():
        return "begins or ends with a blank", "Remove the blank."
    return None


def _faults_of_characters(scheme: str, rest: str) -> Iterator[Fault]:
    """The faults for which it is not known which part of the URL is the password."""
    if any(character.isspace() or not character.isprintable() for character in rest):
        yield "has a blank, a line break or a control character", "Remove it."
    elif scheme in FORMS and scheme != "fs" and not _CHARACTERS.fullmatch(rest.replace("#", "")):
        yield "has a character that a URL must not have", f"Write it as %XX. {_ELSEWHERE}."
    authority, tail = _split_authority(rest)
    if "#" in rest:
        yield "has a #", _ENCODE
    if "@" in tail or authority.count("@") > 1:
        yield "has an @ in more than one place, or behind the first / ? or #", _ENCODE
    if _BAD_PERCENT.search(rest):
        yield "has a % that two hexadecimal digits do not follow", _ENCODE
    try:
        unquote_to_bytes(rest).decode("utf-8")
    except UnicodeDecodeError:
        yield "is not UTF-8 after decoding %XX", _ENCODE


def _split_authority(rest: str) -> tuple[str, str]:
    match = re.search(r"[/?#]", rest)
    return (rest[: match.start()], rest[match.start() :]) if match else (rest, "")


def _options(query: str, form: Form | None, faults: list[Fault]) -> Iterator[tuple[str, str]]:
    seen = set()
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        name = unquote(name)
        # Only what looks like the name of an option is shown.
        called = f"the option {name}" if equals and _OPTION_NAME.fullmatch(name) else "an option"
        if is_secret_name(name) and name not in _SETTINGS:
            fix = "Remove it; extra_config has the options of other stores."
            faults.append((f"has a secret in {called}", fix))
        elif form is not None and form.options is not None and name not in form.options:
            fix = _SETTINGS.get(name, "Remove it.")
            faults.append((f"has {called}, which would be ignored", fix))
        elif name in seen:
            faults.append((f"has {called} twice", "Keep one of them."))
        else:
            seen.add(name)
            yield name, unquote(value)


def _addresses(servers: str, form: Form, scheme: str, faults: list[Fault]) -> Iterator[Address]:
    least, most = form.servers
    parts = servers.split(",") if servers else []
    if most == 0 and parts:
        faults.append(
            ("names a host, which a Unix socket has not", f"Write {scheme}:///PATH, with ///.")
        )
        return
    if len(parts) < least:
        faults.append(("names no host", "Write SCHEME://HOST:PORT."))
    if len(parts) > most > 0:
        faults.append(
            (
                f"names {len(parts)} servers, of which all but one would be ignored",
                "Name one, or use redis-cluster:// or redis-sentinel://.",
            )
        )
        return
    for part in parts:
        host, port = _host_and_port(part)
        if not host:
            faults.append(("names no host", "Write SCHEME://HOST:PORT."))
        elif port is None and form.port is None:
            faults.append(("names no port", f"Write {scheme or 'SCHEME'}://HOST:PORT."))
        elif port == "" or (port and not _is_port(port, zero=scheme == "fs")):
            faults.append(("names a port that is no number up to 65535", "Correct the port."))
        else:
            yield host, int(port) if port else (form.port or 0)


def _host_and_port(part: str) -> tuple[str, str | None]:
    """The host, empty when it is none, and the text behind the colon; ``None`` without a colon."""
    if match := _IPV6.match(part):
        host, rest = match[1], part[match.end() :]
        if rest and not rest.startswith(":"):
            return "", None
        return host.lower(), rest[1:] if rest else None
    host, colon, port = part.partition(":")
    return (host.lower() if _HOST.fullmatch(host) else ""), (port if colon else None)


def _is_port(text: str, zero: bool) -> bool:
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    return is_number and (0 if zero else 1) <= int(text) <= 65535


def _path(
    path: str, options: Mapping[str, str], form: Form, scheme: str, faults: list[Fault]
) -> tuple[str, int]:
    """The service and the database that the path and the option ``db`` name."""
    if form.path == ANYTHING:
        if scheme == "fs" and not path.strip("/"):
            faults.append(("names no directory", "Write fs://localhost:0/DIRECTORY."))
        return "", 0
    if form.path == SOCKET:
        if not path.strip("/"):
            fix = "Write unix:///run/redis.sock."
            faults.append(("names no socket, as unix:///run/redis.sock does", fix))
        return "", _database("", options, faults)
    parts = path.removesuffix("/").split("/")[1:]  # of /A/B
    service = ""
    if form.path == SERVICE:
        service = unquote(parts.pop(0)) if parts else ""
        if not service:
            fix = f"Write {scheme}://HOST:PORT/SERVICE."
            faults.append((f"names no service, as {scheme}://HOST:PORT/SERVICE does", fix))
    if len(parts) > (form.path != NOTHING):
        what = "a path" if form.path == NOTHING else "a path behind the database"
        fix = "Remove it."
        if scheme == "redis-cluster":
            fix = "Remove it: a cluster has database 0 alone."
        faults.append((f"has {what}, which would be ignored", fix))
        return service, 0
    return service, _database(parts[0] if parts else "", options, faults)


def _database(in_path: str, options: Mapping[str, str], faults: list[Fault]) -> int:
    option = options.get("db")
    if option is not None and in_path and option != in_path:
        faults.append(("names two databases", "Keep one of them."))
    text = in_path if option is None else option
    if option is None and not text:
        return 0
    if not (text.isascii() and text.isdigit() and int(text[:11]) <= _LARGEST_DATABASE):
        faults.append(("names a database that is not a number", "Write redis://HOST:PORT/NUMBER."))
        return 0
    return int(text)
