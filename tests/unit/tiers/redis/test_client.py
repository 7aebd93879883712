"""The options of redis-py's clients."""

from __future__ import annotations

from kserve_lmcache.config.stores import Remote
from kserve_lmcache.tiers.redis import client as redis_client


def test_a_client_is_told_everything() -> None:
    remote = Remote(
        "rediss://cache:7000/3", "the test", "user", "password", "ca.pem", "own.pem", "own.key"
    )
    client = redis_client.connect(remote, 1.5)
    told = client.connection_pool.connection_kwargs
    wanted = {
        "host": "cache",
        "port": 7000,
        "db": 3,
        "username": "user",
        "password": "password",
        "socket_timeout": 1.5,
        "socket_connect_timeout": 1.5,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": "ca.pem",
        "ssl_certfile": "own.pem",
        "ssl_keyfile": "own.key",
        "protocol": 2,
    }
    assert {name: told[name] for name in wanted} == wanted
    assert told["ssl_min_version"].name == "TLSv1_2"
    assert told["retry"].get_retries() == 0


def test_a_client_of_a_plain_server_does_not_encrypt() -> None:
    client = redis_client.connect(Remote("redis://cache", "the test"), 1)
    assert "ssl_cert_reqs" not in client.connection_pool.connection_kwargs
