"""The grammar of store URLs: what parses, what is refused, and that no refusal shows a password."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.config import store_url
from kserve_lmcache.config.store_url import FORMS, StoreURLError

REDIS = [scheme for scheme, form in FORMS.items() if form.credentials]
PLACES = {"unix": "/run/redis.sock", "redis-sentinel": "h/main", "rediss-sentinel": "h/main"}

# Long and odd enough to be in no text by accident.
SECRET = "hUnt9"
passwords = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12
).map(lambda text: f"{SECRET}{text}{SECRET}")


def faults(url: str) -> list[str]:
    with pytest.raises(StoreURLError) as error:
        store_url.parse(url)
    return [message for message, _ in error.value.faults]


@pytest.mark.parametrize("scheme", REDIS)
@given(password=passwords)
def test_an_encoded_password_is_read_and_not_shown(scheme: str, password: str) -> None:
    url = f"{scheme}://user:{quote(password, safe='')}@{PLACES.get(scheme, 'h')}"
    parsed = store_url.parse(url)
    assert (parsed.username, parsed.password) == ("user", password)
    for shown in (parsed.bare, repr(parsed), store_url.shown(url)):
        assert SECRET not in shown
    assert store_url.shown(url).startswith(f"{scheme}://user:***@")


URLS = (
    "{scheme}://:{password}@127.0.0.1:6379",
    "{scheme}://:12{password}@127.0.0.1:6379/0",
    "{scheme}://user:{password}@h",
    "{scheme}://{password}@h:6379",
    "{scheme}://{password}",
    "{scheme}://h:{password}",
    "{scheme}://h:6379,password={password}",
    "{scheme}://h:6379/{password}",
    "{scheme}://h:6379/0/{password}",
    "{scheme}://h:6379?password={password}",
    "{scheme}://h:6379?{password}",
    "{scheme}:{password}@h",
    ":{password}@h:6379",
    "{password}@h:6379",
    "h:6379,password={password}",
    "{password}",
)


@given(
    form=st.sampled_from(URLS),
    scheme=st.sampled_from([*FORMS, "s3", "azure", "audit", "redi"]),
    password=passwords,
)
def test_what_is_refused_is_shown_by_its_scheme_alone(
    form: str, scheme: str, password: str
) -> None:
    url = form.format(scheme=scheme, password=password)
    try:
        parsed = store_url.parse(url)
    except StoreURLError as error:
        for message, fix in error.faults:
            assert SECRET not in message + fix
        # A password of the form WORD://… without a scheme before it makes WORD the scheme.
        assert store_url.shown(url) in (f"{store_url.scheme_of(url)}://…", "…")
    else:
        if parsed.password is None:
            return
        shown, servers = store_url.shown(url), parsed.bare.partition("://")[2]
        assert shown == f"{parsed.scheme}://{parsed.username or ''}:***@{servers}"
        # A : or an @ in the password makes a user or a server of a part of it, for every client.
        if parsed.password.count(SECRET) == 2:
            assert SECRET not in parsed.bare + shown


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://:pa/hunter2@127.0.0.1:6379", "has an @ in more than one place, or behind"),
        ("redis://:pa?hunter2@127.0.0.1:6379", "has an @ in more than one place, or behind"),
        ("redis://:pa@hunter2@127.0.0.1:6379", "has an @ in more than one place, or behind"),
        ("redis://:12#hunter2@127.0.0.1:6379/0", "has a #"),
        ("redis://:50%hunter2@h", "has a % that two hexadecimal digits do not follow"),
        ("redis://:pa hunter2@h", "has a blank, a line break or a control character"),
        ("redis://h:6379\n", "has a blank, a line break or a control character"),
        ("redis://:pass%0A@h", "has a password that has a line break or another control"),
        ("redis://:'hunter2'@h", "has a password that is in quotes"),
        ("redis://:@h", "has an empty password"),
        ("redis://:pä@h", "has a character that a URL must not have"),
        (":hunter2@h:6379", "does not begin with a scheme and ://"),
        ("h:6379,password=hunter2", "does not begin with a scheme and ://"),
        ("redis:6379", "does not begin with a scheme and ://"),
        ("unix:", "does not begin with a scheme and ://"),
        ("unix:/run/redis.sock", "does not begin with a scheme and ://"),
        ("redis://", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://[::1", "names no host"),
        ("redis://h:", "names a port that is no number up to 65535"),
        ("redis://h:0", "names a port that is no number up to 65535"),
        ("redis://a:1,b:2", "names 2 servers, of which all but one would be ignored"),
        ("redis://h/cache", "names a database that is not a number"),
        ("redis://h/-1", "names a database that is not a number"),
        ("redis://h?db=", "names a database that is not a number"),
        ("redis://h:6379/0/1", "has a path behind the database, which would be ignored"),
        ("redis://h/0?db=1", "names two databases"),
        ("redis://h?db=0&db=1", "has the option db twice"),
        ("rediss://h?ssl_cert_reqs=none", "has the option ssl_cert_reqs, which would be ignored"),
        ("redis://h?socket_timeout=1", "has the option socket_timeout, which would be ignored"),
        ("redis://h?nothing", "has an option, which would be ignored"),
        ("redis-cluster://h/1", "has a path, which would be ignored"),
        ("redis-cluster://h?db=1", "has the option db, which would be ignored"),
        ("redis-sentinel://h:26379", "names no service, as redis-sentinel://HOST:PORT/SERVICE"),
        ("redis-sentinel://h/main/1/2", "has a path behind the database, which would be ignored"),
        ("unix://run/redis.sock", "names a host, which a Unix socket has not"),
        ("lm://h", "names no port"),
        ("lm://:hunter2@h:1", "has a user or a password, which only Redis and Valkey take"),
        ("s3://key:hunter2@bucket", "has a user or a password, which only Redis and Valkey take"),
        ("s3://bucket?secret_key=hunter2", "has a secret in the option secret_key"),
        ("fs:///kv", "names no host"),
    ],
)
def test_one_fault(url: str, fault: str) -> None:
    found = faults(url)
    assert found[0].startswith(fault)
    assert len(found) == 1 or "#" in url  # an @ behind a # is a second fault
    assert not any("hunter2" in each for each in found)


def test_all_faults_come_together() -> None:
    assert faults("redis://:@h:x/y?ssl=1") == [
        "has an empty password",
        "has the option ssl, which would be ignored",
        "names a port that is no number up to 65535",
        "names a database that is not a number",
    ]


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("redis://:hun'hunter2@h:6379", "hun'hunter2"),
        ("redis://:%27hunter2%27@h:6379", "'hunter2'"),
        ("REDIS://:a:b@h", "a:b"),
        ("unix://:hunter2@/run/redis.sock?db=1", "hunter2"),
        ("redis://h", None),
    ],
)
def test_passwords_that_work(url: str, password: str | None) -> None:
    assert store_url.parse(url).password == password
    assert "hunter2" not in store_url.shown(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hunter2@h:1", "redis://:***@h:1"),
        ("redis://hunter2@h", "redis://***@h"),
        ("redis://me:hunter2@h/1", "redis://me:***@h/1"),
        ("redis://h:6379/?db=1", "redis://h:6379/?db=1"),
        ("redis://h:hunter2", "redis://…"),
        ("hunter2", "…"),
    ],
)
def test_what_is_shown(url: str, shown: str) -> None:
    assert store_url.shown(url) == shown


def test_a_port_that_must_be_named() -> None:
    assert store_url.parse_addresses("a:1", None) == (("a", 1),)
    with pytest.raises(StoreURLError, match="names no port"):
        store_url.parse_addresses("a")
