"""``kserve-lmcache cache``: what it asks of servers, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kserve_lmcache.cli import cache
from kserve_lmcache.cli.cache_client import CacheServerRefusedError
from kserve_lmcache.errors import UsageError
from kserve_lmcache.identity.tag import Selection, digest
from tests.support.http import serving
from tests.support.steered_server import HEADER, TOKENS, Served, steered_server


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with steered_server(api_keys=("the API key",)) as served:
        yield served


@pytest.fixture
def flags(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The server and both keys."""
    for worker in served.workers:
        worker.__init__()  # type: ignore[misc]
    monkeypatch.setenv("VLLM_API_KEY", "the API key")
    url = f"http://127.0.0.1:{served.server.port}"
    return [f"--server={url}", f"--admin-key-file={served.key_file}"]


def test_a_table_of_what_there_is(served: Served, flags: list[str]) -> None:
    _, columns, *rows = cache.run(["show", *flags]).splitlines()
    assert columns.split() == ["TENANT", "ADAPTER", "TIER", "CHUNKS", "MiB", "OLDEST", "s"]
    assert [row.split() for row in rows] == [
        ["-", "-", "local_cpu", "4", "0.0", "2"],
        ["-", "-", "disk", "2", "0.0", "2"],
        [digest("a"), "-", "local_cpu", "6", "0.0", "2"],
        [digest("a"), "-", "disk", "3", "0.0", "2"],
        ["remote:", "it", "is", "away"],
    ]
    (answer,) = json.loads(cache.run(["show", "--json", *flags])).values()
    assert len(answer["entries"]) == 2


def test_without_the_second_key_it_is_the_headers_tenant(served: Served, flags: list[str]) -> None:
    served.asked()
    cache.run(["delete", flags[0], f"--header={HEADER}: a"])
    assert served.asked() == [Selection(tenant=digest("a"))]
    with pytest.raises(CacheServerRefusedError, match="needs the key of cache_admin_key_file"):
        cache.run(["delete", flags[0], "--tenant=b"])


def test_a_prompt_of_a_file(served: Served, flags: list[str], tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"prompt": TOKENS, "temperature": 0, "cache_salt": "s"}))
    text = tmp_path / "prompt.txt"
    text.write_text("a prompt")
    for action in (["delete"], ["prefetch"], ["pin", "--ttl=60"]):
        served.asked()
        cache.run([*action, *flags, f"--request-file={request}"])
        assert served.asked() != []
        cache.run([*action, *flags, f"--prompt-file={text}", "--tenant=a"])
        assert served.asked() != []


@pytest.mark.parametrize(
    "arguments",
    [
        ["empty"],
        ["pin", "--prompt-file=x"],
        ["prefetch"],
        ["show", "--tenant=a"],
        ["delete", "--ttl=3"],
        ["delete", "--header=X"],
        ["delete", "--api-key-file=/nowhere"],
        ["delete", "--ca-file=/nowhere"],
        ["delete", "--server=localhost:8080"],
        ["delete", "--request-file=/nowhere"],
    ],
)
def test_flags_that_do_not_fit(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        cache.run(arguments)


def test_the_server_says_what_is_wrong(served: Served, flags: list[str]) -> None:
    with pytest.raises(CacheServerRefusedError, match="say what to delete"):
        cache.run(["delete", *flags])
    with pytest.raises(CacheServerRefusedError, match="unknown"):
        cache.run(["delete", *flags, "--adapter=unknown"])
    with pytest.raises(CacheServerRefusedError, match="refused"):
        cache.run(["show", "--server=http://127.0.0.1:1"])
    without = pytest.raises(CacheServerRefusedError, match="--enable-routes=cache")
    with serving() as server, without:
        cache.run(["show", f"--server=http://127.0.0.1:{server.port}"])
