"""Where the remote store's credentials come from, and how they reach LMCache."""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_lmcache.config import engine_file
from kserve_lmcache.config.credentials import remote_of
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import (
    DISK_PLUGIN,
    REMOTE_PLUGIN,
    without_tier_plugins,
)
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
        "Mount it, and let uid 1000 read it."
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
            "LMCACHE_REMOTE_PASSWORD: remote_password contradicts remote_url, which holds another.",
        ),
        (
            {"LMCACHE_REMOTE_USERNAME": "other"},
            "LMCACHE_REMOTE_USERNAME: remote_username contradicts remote_url, which holds another.",
        ),
        (
            {"LMCACHE_REMOTE_PASSWORD_FILE": "/dev/null"},
            "LMCACHE_REMOTE_PASSWORD_FILE: remote_password_file contradicts another password.",
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
        "--lmcache remote_url: remote_url has a password on the command line, where every process "
        "sees it. Use LMCACHE_REMOTE_PASSWORD or LMCACHE_REMOTE_PASSWORD_FILE."
    ]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Remote(URL, "test"), URL),
        (Remote(URL, "test", password="p@/:"), "redis://:p%40%2F%3A@redis:6379/1"),
        (Remote(URL, "test", username="u", password="p"), "redis://u:p@redis:6379/1"),
        (Remote("valkey://v:1", "test", password="p"), "redis://:p@v:1"),
        (
            Remote(
                "valkeys://v:1?a=b",
                "test",
                ca_file="/ca.pem",
                cert_file="/c.pem",
                key_file="/k.pem",
            ),
            "rediss://v:1?a=b&ssl_ca_certs=%2Fca.pem&ssl_certfile=%2Fc.pem&ssl_keyfile=%2Fk.pem",
        ),
        (Remote("lm://server:1", "test"), "lm://server:1"),
    ],
)
def test_what_lmcaches_own_connector_is_told(tmp_path: Path, asked: Remote, told: str) -> None:
    path = tmp_path / "engine.yaml"
    engine_file.write({"remote_url": asked.url, "chunk_size": 64}, asked, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert engine_file.read(path) == {"remote_url": told, "chunk_size": 64}


@pytest.mark.parametrize("password_file", [None, "/secret/password"])
def test_what_our_connector_is_told(tmp_path: Path, password_file: str | None) -> None:
    path = tmp_path / "engine.yaml"
    asked = Remote(URL, "test", "user", "hunter2", password_file=password_file)
    values = {"remote_url": URL, "chunk_size": 64, "extra_config": {"a": 1}}
    engine_file.write(values, asked, path, TierLimits(ttl=5))
    told = engine_file.read(path)
    assert "remote_url" not in told
    assert told["remote_storage_plugins"] == [REMOTE_PLUGIN.name]
    assert told["extra_config"]["a"] == 1
    remote, limits = REMOTE_PLUGIN.decode(told["extra_config"])
    assert limits == TierLimits(ttl=5)
    # A mounted password is read for each connection, since it may be rotated.
    password = None if password_file else "hunter2"
    assert remote == dataclasses.replace(asked, password=password)


def test_what_our_disk_tier_is_told(tmp_path: Path) -> None:
    path = tmp_path / "engine.yaml"
    disk, limits = Disk(("/a", "/b"), 5 * 2**30), TierLimits(load=5)
    values = {
        "local_disk": "/a,/b",
        "max_local_disk_size": 5.0,
        "remote_url": URL,
        "remote_storage_plugins": ["theirs"],
    }
    engine_file.write(values, Remote(URL, "test"), path, TierLimits(), (disk, limits))
    told = engine_file.read(path)
    assert {*told} == {"remote_storage_plugins", "extra_config"}  # no tier of LMCache's own
    assert told["remote_storage_plugins"] == [DISK_PLUGIN.name, "theirs", REMOTE_PLUGIN.name]
    assert DISK_PLUGIN.decode(told["extra_config"]) == (disk, limits)
    assert REMOTE_PLUGIN.decode(told["extra_config"])[0].url == URL
    assert without_tier_plugins(told["extra_config"]) == {}


def test_workers_are_spread_over_the_disks() -> None:
    disk = Disk(("/a", "/b"), 1)
    assert [disk.directory_of(worker) for worker in range(3)] == ["/a", "/b", "/a"]


def test_lmcache_can_read_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmcache.v1.config import load_engine_config_with_overrides

    environ = {
        "LMCACHE_CHUNK_SIZE": "128",
        "LMCACHE_LOCAL_CPU": "no",
        "LMCACHE_EXTERNAL_BACKENDS": "x",
        "LMCACHE_REMOTE_PASSWORD": "hunter2",
        "KSERVE_LMCACHE_OFFLOAD": "on",
        "LMCACHE_LOG_LEVEL": "INFO",
    }
    path = tmp_path / "engine.yaml"
    engine_file.write({"chunk_size": 64}, None, path)
    engine_file.hand_over(path, environ)
    assert environ == {"LMCACHE_CONFIG_FILE": str(path), "LMCACHE_LOG_LEVEL": "INFO"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    config = load_engine_config_with_overrides()
    assert (config.chunk_size, config.local_cpu) == (64, True)
    assert yaml.safe_load(path.read_text()) == {"chunk_size": 64}


def test_what_the_scheduler_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "engine.yaml"
    monkeypatch.setenv("LMCACHE_CONFIG_FILE", str(path))
    assert engine_file.scheduler_failure(path) == ""
    engine_file.leave_scheduler_failure("no lookup client")
    assert engine_file.scheduler_failure(path) == "no lookup client"


def test_what_the_workers_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lmcache.yaml"
    monkeypatch.setenv("LMCACHE_CONFIG_FILE", str(path))
    for process in (10, 2):
        engine_file.leave_report(process, {"failure": "", "process": process})
    engine_file.leave_report(2, {"failure": "gone", "process": 2})
    assert engine_file.reports(path) == [
        {"failure": "gone", "process": 2},
        {"failure": "", "process": 10},
    ]
    long_ago = time.time() - 6
    os.utime(tmp_path / "report-2", (long_ago, long_ago))
    assert [report["process"] for report in engine_file.reports(path)] == [10]
    monkeypatch.setenv("LMCACHE_CONFIG_FILE", str(tmp_path / "elsewhere" / path.name))
    with pytest.raises(FileNotFoundError):
        engine_file.leave_report(2, {})
