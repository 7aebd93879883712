"""What of a request reaches the keys, and what does not."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.lora.request import LoRARequest

from kserve_lmcache.connector.isolation import TAG, Isolation
from kserve_lmcache.identity.namespace import ADAPTER, TENANT
from kserve_lmcache.identity.tag import Tag, digest, parse


def request(
    lora: LoRARequest | None = None, salt: str | None = None, extra: Any = None
) -> SimpleNamespace:
    return SimpleNamespace(
        request_id="1",
        lora_request=lora,
        cache_salt=salt,
        sampling_params=SamplingParams(extra_args=extra),
        kv_transfer_params=(extra or {}).get("kv_transfer_params"),
    )


def tag(isolation: Isolation, *arguments: Any, **keywords: Any) -> str | None:
    """The tag of a request that may use the cache."""
    marked = request(*arguments, **keywords)
    assert isolation.mark(marked)
    first = (marked.sampling_params.extra_args or {}).get("kv_transfer_params", {}).get(TAG)
    assert isolation.mark(marked)
    again = (marked.sampling_params.extra_args or {}).get("kv_transfer_params", {}).get(TAG)
    assert first == again
    return first


@pytest.mark.parametrize(
    ("modality", "identifier", "may"),
    [
        ("image", "a" * 64, True),
        ("image", "b" * 128, True),
        ("image", f"an adapter:{'a' * 64}", True),
        ("image", "renderer0-mm-1-image-0", False),
        ("image", "mine", False),
        ("image", "A" * 64, False),
        ("image", "", False),
        ("video", "a" * 64, False),
        ("audio", "a" * 64, False),
    ],
)
def test_a_picture_has_the_hash_of_its_content(modality: str, identifier: str, may: bool) -> None:
    feature = SimpleNamespace(modality=modality, identifier=identifier)
    known = SimpleNamespace(modality="image", identifier="0" * 64)
    marked = request(salt="s")
    marked.mm_features = [known, feature]
    assert Isolation().mark(marked) is may


LORA = LoRARequest("first", 1, "/nowhere")


def of_adapter(content: str) -> dict[str, str]:
    """What the server tells of a request's adapter."""
    return {ADAPTER: content}


def test_a_plain_request_has_no_tag() -> None:
    assert tag(Isolation()) is None
    assert tag(Isolation(), salt="") is None


def test_what_the_client_says_about_the_transfer_is_dropped() -> None:
    extra = {"kv_transfer_params": {"lmcache.tag.x": ["a"], "disagg_spec": {}}, "other": 1}
    marked = request(extra=extra)
    assert Isolation().mark(marked)
    assert marked.sampling_params.extra_args == {"other": 1}
    assert marked.kv_transfer_params is None
    salted = request(salt="s", extra={"kv_transfer_params": {TAG: "chosen"}})
    assert Isolation().mark(salted)
    parameters = salted.sampling_params.extra_args["kv_transfer_params"]
    assert list(parameters) == [TAG]
    assert parameters[TAG] != "chosen"
    assert extra["kv_transfer_params"]  # another request's own dictionary stays as it is


def test_salts_and_adapters_and_both_are_apart() -> None:
    isolation = Isolation()
    tags = [
        tag(isolation, None, "a"),
        tag(isolation, None, "b"),
        tag(isolation, LORA, None, of_adapter("1")),
        tag(isolation, LORA, None, of_adapter("2")),
        tag(isolation, LORA, "a", of_adapter("1")),
        tag(isolation, LORA, "a", of_adapter("2")),
    ]
    assert None not in tags
    assert len(set(tags)) == len(tags)


def test_a_tag_holds_nothing_that_a_key_would_read() -> None:
    for salt in ("@", "%", "a@b%c", "\0", "é\ud800", "x" * 10**6):
        found = tag(Isolation(), salt=salt)
        assert found is not None
        assert re.fullmatch(r"[0-9a-f]{32}\.\.", found)
        json.dumps(found)


def test_a_tag_tells_the_tenant_and_the_adapter() -> None:
    """And no two requests share a tag that differ in salt or adapter, whatever the tenant is."""
    extra = {**of_adapter("1"), TENANT: "a"}
    found = parse(tag(Isolation(), LORA, "salt", extra) or "")
    assert found == Tag(digest("salt"), digest("a"), digest("1"))
    untold = parse(tag(Isolation(), LORA, "salt", of_adapter("1")) or "")
    assert untold == Tag(digest("salt"), "", digest("1"))


def test_the_same_content_under_another_name_shares() -> None:
    other = LoRARequest("renamed", 7, "/elsewhere")
    first = tag(Isolation(), LORA, None, of_adapter("1"))
    assert tag(Isolation(), other, None, of_adapter("1")) == first


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}, {ADAPTER: ""}])
def test_an_adapter_whose_content_is_not_told_is_not_offloaded(extra: Any) -> None:
    assert not Isolation().mark(request(LORA, extra=extra))


def test_no_file_is_read_in_the_schedulers_step() -> None:
    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "os.listdir", "os.scandir"):
            opened.append((event, arguments))

    opened: list[Any] = []
    watching = False
    sys.addaudithook(refuse)
    isolation = Isolation()
    watching = True
    for _ in range(3):
        isolation.mark(request(LORA, extra=of_adapter("1")))
        isolation.mark(request(LORA))
    watching = False
    assert opened == []


def test_requests_whose_tags_do_not_reach_the_keys_are_not_offloaded() -> None:
    layerwise = Isolation(tags_reach_keys=False)
    assert layerwise.mark(request())
    assert not layerwise.mark(request(salt="s"))
    pooling = request(salt="s")
    pooling.sampling_params = None
    assert not Isolation().mark(pooling)
    pooling.cache_salt = None
    assert Isolation().mark(pooling)
