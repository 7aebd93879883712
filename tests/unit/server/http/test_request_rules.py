from __future__ import annotations

import json
from typing import Any

import pytest

from kserve_lmcache.engine.tenant import PREFIX, salt
from kserve_lmcache.server.http.request_rules import refusal


def asked(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "cache_salt": None, **fields}).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"disagg_spec": {}}},
        {"kv_transfer_params": {"lmcache.tag.x": ["a"]}},
        {"kv_transfer_params": {}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"vllm_xargs": {"kv_transfer_params": None}},
        {"sampling_params": {"extra_args": {"kv_transfer_params": {}}}},
    ],
)
def test_transfer_parameters_are_refused(fields: dict[str, Any]) -> None:
    body = asked(**fields)
    assert refusal(body).startswith("kv_transfer_params is not accepted")
    for character in "kT_":
        escaped = f"\\u{ord(character.lower()):04X}".encode()
        disguised = body.replace(character.lower().encode(), escaped)
        assert json.loads(disguised) == json.loads(body)
        assert refusal(disguised).startswith("kv_transfer_params is not accepted")


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, fields]}]}


@pytest.mark.parametrize(
    "fields",
    [
        part(type="image_url", image_url={"url": "data:,"}, uuid="mine"),
        part(type="image_url", image_url=None, uuid="mine"),
        part(image_url="data:,", uuid=""),
        part(type="video_url", video_url={"url": "data:,"}, uuid="mine"),
        part(type="input_audio", input_audio={"data": ""}, uuid="mine"),
        part(type="image_embeds", image_embeds="", uuid="0" * 64),
        {"data_1": {"content": [{"image_url": "data:,", "uuid": "mine"}]}},
        {"token_ids": [1], "features": {"mm_hashes": {"image": ["0" * 64]}}},
    ],
)
def test_names_of_pictures_are_refused(fields: dict[str, Any]) -> None:
    body = asked(**fields)
    assert refusal(body).startswith("uuid and mm_hashes of pictures")
    disguised = body.replace(b'"uuid"', b'"u\\u0075id"').replace(b"mm_hash", b"mm\\u005fhash")
    assert json.loads(disguised) == json.loads(body)
    assert refusal(disguised).startswith("uuid and mm_hashes of pictures")


@pytest.mark.parametrize(
    "body",
    [
        asked(**part(type="image_url", image_url={"url": "data:,"}, uuid=None)),
        asked(tools=[{"parameters": {"properties": {"uuid": {}, "image": {}}}}]),
        asked(**part(type="text", text="uuid", uuid="mine")),
        asked(features={"mm_hashes": None}),
        asked(vllm_xargs={"other": 1}),
        asked(kv_transfer_params=None),
        asked(prompt="What is kv_transfer_params?"),
        asked(tools=[{"parameters": {"kv_transfer_params": {}}}]),
        b'["kv_transfer_params"]',
        b'{"kv_transfer_params": ',
        b"[" * 100_000 + b"kv_transfer_params",
        b"",
    ],
)
def test_other_requests_are_not(body: bytes) -> None:
    assert refusal(body) == ""


def test_without_a_tenant_and_a_salt_nothing_is_put_in() -> None:
    assert salt("", None) is None
    assert salt("", "") is None


def test_every_tenant_and_salt_and_both_are_apart() -> None:
    pairs = [("1", None), ("2", None), ("", "1"), ("", "2"), ("1", "1"), ("1", "2"), ("12", "1")]
    found = [salt(*pair) for pair in pairs]
    assert len(set(found)) == len(pairs)
    assert found == [salt(*pair) for pair in pairs]


def test_a_client_cannot_name_the_salt_of_another_tenant() -> None:
    theirs = salt("1", None)
    assert salt("2", theirs) != theirs
    assert salt("", theirs) != theirs
    assert salt("", salt("", theirs)) != theirs


def test_a_salt_without_a_tenant_stays_as_a_router_knows_it() -> None:
    for own in ("s", "\0", "é", "@%/", "x" * 256):
        assert salt("", own) == own


def test_a_salt_that_is_long_or_no_text_becomes_a_digest() -> None:
    for own in ("é\ud800", "x" * 257, "x" * 10**6, PREFIX, "0a" * 32):
        found = salt("", own)
        assert found is not None
        assert found.startswith(PREFIX)
        assert len(found) == len(PREFIX) + 64
