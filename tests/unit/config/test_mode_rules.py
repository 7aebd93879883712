"""A key that means nothing to a cache server is refused with it, and only with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configuration import problems

MODE = "mode: multiprocess\n"
REFUSED = {
    "use_layerwise: true\ncopy: lmcache": "use_layerwise",
    "enable_blending: true\ncopy: lmcache": "enable_blending",
    "save_unfull_chunk: true\ncopy: lmcache": "save_unfull_chunk",
    "copy: lmcache": "copy",
    "remote_url: redis://h:6379\nremote_connector: lmcache": "remote_connector",
    "remote_url: lm://h:65432": "remote_url",
    "cache_policy: LFU": "cache_policy",
    "pre_caching_hash_algorithm: sha256": "pre_caching_hash_algorithm",
    "store_location: LocalCPUBackend": "store_location",
    "lookup_timeout_ms: 100": "lookup_timeout_ms",
    "priority_limit: 3": "priority_limit",
    "extra_config: {use_odirect: true}": "extra_config",
    "enable_routes: cache": "enable_routes",
    "tenant_local_quota_size: 1\ntenant_header: X": "tenant_local_quota_size",
    "tenant_remote_quota_size: 1\ntenant_header: X\nremote_url: redis://h:6379": (
        "tenant_remote_quota_size"
    ),
}
TAKEN = (
    "chunk_size: 128",
    "max_local_cpu_size: 2",
    "local_disk: /cache\nmax_local_disk_size: 5",
    "remote_url: redis://h:6379\nremote_ttl: 60\nremote_serde: naive",
    "remote_url: valkeys://h:6379",
    "remote_url: redis-cluster://h:6379",
    "save_decode_cache: true",
    "min_retrieve_tokens: 512",
    "local_cpu: true",
    "cache_policy: LRU",
    "tenant_header: X-Tenant",
)


@pytest.mark.parametrize("text", REFUSED)
def test_a_key_without_meaning_is_refused(tmp_path: Path, text: str) -> None:
    found = problems(tmp_path, MODE + text)
    name = REFUSED[text]
    assert any(name in each and "mode=multiprocess" in each for each in found), found


@pytest.mark.parametrize("text", [text for text in REFUSED if "\n" not in text])
def test_the_other_mode_takes_it(tmp_path: Path, text: str) -> None:
    assert not any("mode" in each for each in problems(tmp_path, text))


@pytest.mark.parametrize("text", TAKEN)
def test_what_a_cache_server_reads_is_taken(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, MODE + text) == []


def test_a_mode_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "mode: mp")
    assert "none of in-process, multiprocess" in found


def test_a_directory_of_a_cache_server_needs_the_mode(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "cache_server_directory: /cache")
    assert "cache_server_directory has no effect with mode=in-process" in found
    assert problems(tmp_path, MODE + "cache_server_directory: /cache") == []
