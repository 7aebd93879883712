"""The credentials of the remote store, from each place that may hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config.credentials import remote_of
from kserve_lmcache.config.stores import Remote
from tests.support.configuration import resolved

URL = "redis://redis:6379/1"


def remote(tmp_path: Path, **arguments: Any) -> tuple[Remote, list[str]]:
    configuration = resolved(tmp_path, **arguments)
    found = remote_of(configuration)
    assert found is not None
    return found, [str(problem).replace(str(tmp_path), "") for problem in configuration.problems]


def test_none_is_asked_for(tmp_path: Path) -> None:
    assert remote_of(resolved(tmp_path)) is None


def test_from_the_url(tmp_path: Path) -> None:
    found, problems = remote(tmp_path, LMCACHE_REMOTE_URL="redis://us%20er:p%40ss@redis:6379/1")
    assert (found.url, found.username, found.password) == (URL, "us er", "p@ss")
    assert (found.source, problems) == ("LMCACHE_REMOTE_URL", [])
    assert "p@ss" not in repr(found)


def test_from_variables(tmp_path: Path) -> None:
    found, problems = remote(
        tmp_path,
        file=f"remote_url: {URL}",
        LMCACHE_REMOTE_USERNAME="me",
        LMCACHE_REMOTE_PASSWORD="p",
    )
    assert (found.url, found.username, found.password, problems) == (URL, "me", "p", [])


def test_from_a_mounted_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    file = f"remote_url: {URL}\nremote_password_file: {tmp_path}/password\n"
    found, problems = remote(tmp_path, file=file)
    assert (found.username, found.password, problems) == (None, "hunter2", [])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = "remote_url: rediss://redis:6379\nremote_password_file: /a\nremote_ca_file: /b\n"
    _, problems = remote(tmp_path, file=file)
    assert problems == [
        f"/lmcache.yaml:{line}: {name} {path!r} cannot be read (No such file or directory). "
        "Mount the file so that this process may read it."
        for line, name, path in ((2, "remote_password_file", "/a"), (3, "remote_ca_file", "/b"))
    ]


def test_passwords_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"caf\xe9")
    file = f"remote_url: {URL}\nremote_password_file: {tmp_path}/password\n"
    _, problems = remote(tmp_path, file=file)
    assert problems == [
        "/lmcache.yaml:2: remote_password_file is not UTF-8. Write the password as text."
    ]
    environ = {"LMCACHE_REMOTE_URL": URL, "LMCACHE_REMOTE_PASSWORD": "caf\udce9"}
    _, problems = remote(tmp_path, **environ)
    assert problems == [
        "LMCACHE_REMOTE_PASSWORD: remote_password is not UTF-8. Write the password as text."
    ]


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (
            {"LMCACHE_REMOTE_PASSWORD": "other"},
            "LMCACHE_REMOTE_PASSWORD: remote_password contradicts remote_url.",
        ),
        (
            {"LMCACHE_REMOTE_USERNAME": "other"},
            "LMCACHE_REMOTE_USERNAME: remote_username contradicts remote_url.",
        ),
        (
            {"LMCACHE_REMOTE_PASSWORD_FILE": "/dev/null"},
            "LMCACHE_REMOTE_PASSWORD_FILE: remote_password_file holds another password than "
            "remote_password or remote_url.",
        ),
    ],
)
def test_two_that_contradict_each_other(
    tmp_path: Path, environ: dict[str, str], problem: str
) -> None:
    _, problems = remote(tmp_path, LMCACHE_REMOTE_URL="redis://me:p@redis:6379", **environ)
    assert problems == [f"{problem} Keep one of them."]


def test_a_password_on_the_command_line(tmp_path: Path) -> None:
    _, problems = remote(tmp_path, flags=["remote_url=redis://:hunter2@redis:6379"])
    assert problems == [
        "--lmcache remote_url: remote_url has a password on the command line, which every process "
        "can read. Use LMCACHE_REMOTE_PASSWORD or LMCACHE_REMOTE_PASSWORD_FILE."
    ]


def test_a_user_without_a_password_may_be_the_password(tmp_path: Path) -> None:
    found, problems = remote(tmp_path, LMCACHE_REMOTE_URL="redis://hunter2@redis:6379")
    assert problems == [
        "LMCACHE_REMOTE_URL: remote_url names a user without a password. Set "
        "LMCACHE_REMOTE_PASSWORD. If it is the password, write a colon before it."
    ]
    assert "hunter2" not in repr(found)
    environ = {"LMCACHE_REMOTE_URL": "redis://me@redis:6379", "LMCACHE_REMOTE_PASSWORD": "p"}
    found, problems = remote(tmp_path, **environ)
    assert (found.username, found.password, problems) == ("me", "p", [])


@pytest.mark.parametrize("name", ["remote_password", "remote_sentinel_password"])
@pytest.mark.parametrize(
    ("written", "expected", "problem"),
    [
        ("hunter2\n", "hunter2", ""),
        ("hunter2\r\n", "hunter2", ""),
        ('"hunter2"', None, "is in quotes"),
        ("'hunter2'\n", None, "is in quotes"),
        (" hunter2", None, "begins or ends with a blank"),
        ("hun\nter2", None, "has a line break or another control character"),
        ("", None, ""),
    ],
)
def test_passwords_as_editors_and_charts_write_them(
    name: str, written: str, expected: str | None, problem: str, tmp_path: Path
) -> None:
    """A variable and a file are read alike, and no quote is taken off a password in silence."""
    url = {"LMCACHE_REMOTE_URL": "redis-sentinel://redis/main"}
    (tmp_path / "password").write_bytes(written.encode())
    variable = f"LMCACHE_{name.upper()}"
    as_variable, as_file = (
        remote(tmp_path, **url, **{variable: written}),
        remote(tmp_path, **url, **{f"{variable}_FILE": str(tmp_path / "password")}),
    )
    for (found, problems), setting in ((as_variable, name), (as_file, f"{name}_file")):
        assert getattr(found, name.removeprefix("remote_")) == expected
        if not written and setting == f"{name}_file":
            assert "is empty" in problems[0]
        elif problem:
            assert f"{setting} {problem}." in problems[0]
        else:
            assert problems == []
        assert "hunter2" not in repr(found) + str(problems)
