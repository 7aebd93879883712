"""The S3 store starts and keeps what it is given, under LMCache's names."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.support.stores.s3 import BUCKET, s3_server


def test_an_object_store(tmp_path: Path) -> None:
    value = bytes(range(256)) * 20_000
    with s3_server(tmp_path) as store:
        store.put("model@1@0@abc%2F@float", value)
        assert store.get("model@1@0@abc%2F@float") == value
        assert store.get("another") is None
        unsigned = httpx.get(f"http://127.0.0.1:{store.port}/another")
        assert unsigned.status_code == 403
        assert f"<BucketName>{BUCKET}</BucketName>" in unsigned.text
    assert not store.answers()
