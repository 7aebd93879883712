"""The flag ``--redis`` of ``bench`` has the grammar of every other store URL."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from kserve_lmcache.bench.store import BareStore, remote_of
from kserve_lmcache.cli import bench
from kserve_lmcache.errors import UsageError
from tests.support.stores import redis_process
from tests.unit.test_no_secret_is_shown import MARK, SLOW, urls

PASSWORD = "p/w#?@1"
ENCODED = "p%2Fw%23%3F%401"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis:6379", "it does not begin with a scheme and ://"),
        ("redis://h/0/1", "it has a path behind the database, which would be ignored"),
        ("rediss://h?ssl_cert_reqs=none", "it has the option ssl_cert_reqs"),
        ("redis-cluster://h", "names no single Redis: use redis://"),
        ("redis-sentinel://h/main", "names no single Redis"),
        ("lm://h:1", "names no single Redis"),
    ],
)
def test_a_url_that_is_no_single_redis(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        bench.run([f"--redis={url}", f"--output={tmp_path / 'out'}", "http://127.0.0.1:1"])
    assert message in str(error.value)
    assert not (tmp_path / "out").exists(), "nothing is written before the flag is known"


@SLOW
@given(url=urls)
def test_no_refusal_shows_a_password(url: str) -> None:
    said, user = "", ""
    try:
        remote = remote_of(url)
        said, user = repr(remote), remote.username or ""
    except UsageError as error:
        said = str(error)
    assert MARK not in said or MARK in user


def test_a_password_is_the_one_that_is_meant(tmp_path: Path) -> None:
    with redis_process(tmp_path, password=PASSWORD) as store:
        bare = BareStore(remote_of(f"redis://:{ENCODED}@{store.host}:{store.port}/0"))
        before, after = bare.sent_bytes()
        assert 0 < before < after
        assert bare.read_seconds(3 * 2**20) > 0
