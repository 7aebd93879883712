"""At which address a server tells Mooncake that it is."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from lmcache.v1.config import LMCacheEngineConfig

from kserve_lmcache.tiers.lmcache.connectors import connector_config
from kserve_lmcache.tiers.lmcache.mooncake import name_host

NAME = "mooncake_local_hostname"


def _named(url: str, **extra: Any) -> dict[str, Any]:
    config = LMCacheEngineConfig.from_defaults(extra_config=extra)
    changed = connector_config(config, url)
    name_host(changed)
    assert config.extra_config == extra  # LMCache's own is left alone
    found: dict[str, Any] = changed.extra_config
    return found


def test_it_is_the_one_that_the_master_is_reached_from() -> None:
    assert _named("mooncakestore://127.0.0.1:50051/")[NAME] == "127.0.0.1"
    assert _named("mooncakestore://nowhere:1/", mooncake_master_server_addr="127.0.0.1")[NAME] == (
        "127.0.0.1"
    )


def test_an_own_address_differs_from_the_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master elsewhere: what a socket says of itself counts, not the master's address."""
    real = socket.getaddrinfo
    asked = []

    def other(host: str, port: int, **rest: Any) -> Any:
        asked.append((host, port))
        return real("127.0.0.2", port, **rest)

    monkeypatch.setattr(socket, "getaddrinfo", other)
    assert _named("mooncakestore://lmcache-remote:50051/")[NAME] == "127.0.0.1"
    assert asked == [("lmcache-remote", 50051)]


@pytest.mark.parametrize("name", [NAME, "local_hostname"])
def test_one_that_is_set_stays(name: str) -> None:
    found = _named("mooncakestore://nowhere.invalid:50051/", **{name: "own"})
    assert found[name] == "own"
    assert {NAME, "local_hostname"} & set(found) == {name}


def test_a_master_without_an_address_is_tried_again() -> None:
    with pytest.raises(OSError, match=r"(?i)name|resolution|known"):
        _named("mooncakestore://nowhere.invalid:50051/")
