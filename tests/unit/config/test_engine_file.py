"""The files between the server and the engine's processes."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest
import yaml

from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Disk, Remote
from kserve_lmcache.config.tier_limits import TierLimits
from kserve_lmcache.config.tier_plugins import (
    DISK_PLUGIN,
    REMOTE_PLUGIN,
    without_tier_plugins,
)

URL = "redis://redis:6379/1"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Remote(URL, "test"), URL),
        (Remote(URL, "test", password="p@/:"), "redis://:p%40%2F%3A@redis:6379/1"),
        (Remote(URL, "test", username="u", password="p"), "redis://u:p@redis:6379/1"),
        (Remote("valkey://v:1", "test", password="p"), "redis://:p@v:1"),
        (
            Remote(
                "valkeys://v:1?db=2",
                "test",
                ca_file="/ca.pem",
                cert_file="/c.pem",
                key_file="/k.pem",
            ),
            "rediss://v:1?db=2&ssl_ca_certs=%2Fca.pem&ssl_certfile=%2Fc.pem&ssl_keyfile=%2Fk.pem",
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


def test_the_users_own_threshold_of_failing_loads_is_kept(tmp_path: Path) -> None:
    values = {"remote_url": URL, "extra_config": {"get_blocking_failed_threshold": 3}}
    engine_file.write(values, Remote(URL, "test"), tmp_path / "engine.yaml", TierLimits())
    told = engine_file.read(tmp_path / "engine.yaml")["extra_config"]
    assert told["get_blocking_failed_threshold"] == 3


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
    assert {*without_tier_plugins(told["extra_config"])} == {"get_blocking_failed_threshold"}


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
