"""Who may see and change what of the cache, and what the routes ask of the workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kserve_lmcache.engine import tenant
from kserve_lmcache.engine.cache_control import CacheControl
from kserve_lmcache.engine.model import LMCacheModel
from kserve_lmcache.identity.tag import Selection, Tag, digest
from tests.support.http import serving
from tests.support.steered_server import ADMIN, CACHE, KEY, TOKENS, Served, steered_server
from tests.support.waiting import until


@pytest.fixture(scope="module")
def running() -> Iterator[Served]:
    with steered_server() as served:
        yield served


@pytest.fixture
def served(running: Served) -> Served:
    for worker in running.workers:
        worker.__init__()  # type: ignore[misc]
    return running


def salted(of: str, salt: str) -> str:
    return digest(tenant.salt(of, salt) or "")


@pytest.mark.parametrize(
    ("of", "key", "body", "selection"),
    [
        ("a", "", {}, Selection(tenant=digest("a"))),
        ("a", "", {"tenant": "a"}, Selection(tenant=digest("a"))),
        ("a", "", {"cache_salt": "s"}, Selection(salt=salted("a", "s"))),
        ("", "", {"cache_salt": "s"}, Selection(salt=salted("", "s"))),
        (
            "a",
            "",
            {"adapter": "adapter"},
            Selection(tenant=digest("a"), adapter=digest("content of the adapter")),
        ),
        ("", KEY, {"tenant": "b"}, Selection(tenant=digest("b"))),
        ("", KEY, {"tenant_digest": digest("b")}, Selection(tenant=digest("b"))),
        ("", KEY, {"adapter": "adapter"}, Selection(adapter=digest("content of the adapter"))),
        ("", KEY, {"adapter_digest": "0" * 32}, Selection(adapter="0" * 32)),
        ("", KEY, {"all": True}, Selection()),
        ("a", KEY, {"all": True}, Selection()),
    ],
)
def test_what_is_deleted(
    served: Served, of: str, key: str, body: dict[str, Any], selection: Selection
) -> None:
    response = served.ask("DELETE", of=of, key=key, **body)
    assert response.json() == {"deleted": {"local_cpu": 8, "remote": 8}}
    assert served.asked() == [selection]


@pytest.mark.parametrize(
    ("of", "key", "body", "status"),
    [
        ("", "", {}, 400),
        ("", "", {"adapter": "adapter"}, 403),
        ("", "", {"adapter_digest": "0" * 32}, 403),
        ("", "", {"tenant": "b"}, 403),
        ("", "", {"tenant_digest": digest("b")}, 403),
        ("", "", {"all": True}, 403),
        ("", "", {"prompt": "p"}, 403),
        ("", "", {"tenant": "b", "cache_salt": "s"}, 403),
        ("", "", {"tenant": "b", "prompt": "p"}, 403),
        ("a", "", {"tenant": "b"}, 403),
        ("a", "", {"tenant_digest": digest("b")}, 403),
        ("a", "", {"tenant_digest": digest("a"), "cache_salt": "s"}, 403),
        ("a", "", {"all": True}, 403),
        ("a", "", {"tenant": "b", "messages": []}, 403),
        ("a", "wrong", {}, 403),
        ("a", "wrong", {"tenant": "b"}, 403),
        ("", KEY, {}, 400),
        ("", KEY, {"all": True, "tenant": "b"}, 400),
        ("", KEY, {"all": "yes"}, 400),
        ("a", "", {"all": False}, 400),
        ("a", "", {"cache_salt": ""}, 400),
        ("a", "", {"adapter": ""}, 400),
        ("a", KEY, {"adapter_digest": ""}, 400),
        ("a", KEY, {"tenant_digest": ""}, 400),
        ("a", KEY, {"tenant": ""}, 400),
        ("", KEY, {"tenant_digest": "*"}, 400),
        ("", KEY, {"adapter_digest": "../.."}, 400),
        ("", KEY, {"tenannt": "b"}, 400),
        ("", KEY, {"tenant": ["b"]}, 400),
        ("", KEY, {"adapter": "unknown"}, 404),
        ("", KEY, {"prompt": "p", "messages": []}, 400),
        ("", KEY, {"prompt": ["p", "q"]}, 400),
    ],
)
def test_what_is_refused(
    served: Served, of: str, key: str, body: dict[str, Any], status: int
) -> None:
    response = served.ask("DELETE", of=of, key=key, **body)
    assert response.status_code == status, response.text
    assert KEY not in response.text
    assert served.asked() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'"a"'])
def test_a_body_that_is_no_object_is_refused(served: Served, body: bytes) -> None:
    response = served.server.client.request("DELETE", CACHE, headers={ADMIN: KEY}, content=body)
    assert response.status_code == 400
    assert served.asked() == []


@pytest.mark.parametrize(
    ("of", "key", "body", "tag"),
    [
        ("a", "", {"prompt": "p"}, Tag(salted("a", ""), digest("a"), "")),
        ("a", "", {"messages": [], "model": "adapter"}, None),
        ("a", "", {"prompt": TOKENS, "cache_salt": "s"}, Tag(salted("a", "s"), digest("a"), "")),
        ("", "", {"prompt": "p", "cache_salt": "s"}, Tag(salted("", "s"), "", "")),
        ("", KEY, {"prompt": "p"}, Tag()),
        ("", KEY, {"prompt": "p", "tenant": "b"}, Tag(salted("b", ""), digest("b"), "")),
    ],
)
def test_a_prompt_is_deleted_for_its_requests(
    served: Served, of: str, key: str, body: dict[str, Any], tag: Tag | None
) -> None:
    if tag is None:
        tag = Tag(salted("a", ""), digest("a"), digest("content of the adapter"))
    response = served.ask("DELETE", of=of, key=key, **body)
    assert response.json() == {"deleted": {"local_cpu": 8, "remote": 8}}
    assert served.asked() == [(TOKENS, str(tag))]


def test_a_tier_that_fails_is_an_error(served: Served) -> None:
    served.workers[1].error = "it is away"
    response = served.ask("DELETE", of="a")
    assert response.status_code == 502
    assert "remote: it is away" in response.json()["error"]["message"]


def test_the_list_is_of_the_callers_own(served: Served) -> None:
    response = served.ask("GET", of="a")
    local = {"chunks": 6, "bytes": 60, "oldest_seconds": 1.5}
    disk = {"chunks": 3, "bytes": 30, "oldest_seconds": 1.5}  # both workers have the same files
    entry = {"tenant": digest("a"), "adapter": "", "adapter_names": []}
    assert response.json() == {
        "entries": [{**entry, "tiers": {"local_cpu": local, "disk": disk}}],
        "errors": {"remote": "it is away"},
    }
    assert response.headers["cache-control"] == "no-store"
    (nobodys,) = served.ask("GET").json()["entries"]
    assert (nobodys["tenant"], nobodys["tiers"]["disk"]["chunks"]) == ("", 2)
    assert len(served.ask("GET", key=KEY).json()["entries"]) == 2
    assert served.ask("GET", key="wrong").status_code == 403
    assert served.asked() == [Selection(tenant=digest("a")), Selection(tenant=""), Selection()]


@pytest.mark.parametrize(
    "body", [{"prompt": "p"}, {"messages": [{"role": "user", "content": "p"}]}]
)
def test_a_prefetch_says_where_the_prompt_was(served: Served, body: dict[str, Any]) -> None:
    response = served.ask("POST", "/prefetch", stream=True, max_tokens=7, n=3, **body)
    assert response.json() == {"tokens": {"computed": 3}, "local_cpu": {"chunks": 4, "of": 4}}
    assert served.asked() == [("prefetch", TOKENS, "")]
    assert served.ask("POST", "/prefetch", prompt="p", tenant="b").status_code == 403


def test_a_prompt_that_is_none_is_not_repeated(served: Served) -> None:
    for body in ({"messages": "the secret prompt"}, {"prompt": {"a": "the secret prompt"}}):
        response = served.ask("POST", "/prefetch", of="a", **body)
        assert response.status_code == 400, response.text
        assert "secret" not in response.text
    assert served.asked() == []


def test_a_pin_lasts(served: Served) -> None:
    tag = str(Tag(salted("a", ""), digest("a"), ""))
    response = served.ask("POST", "/pin", of="a", prompt="p", ttl=60)
    told = response.json()
    assert (told["bytes"], told["tiers"]) == (40, {"local_cpu": 4, "remote": 4})
    assert served.asked() == [("pin", TOKENS, tag, 60.0)]
    assert served.ask("POST", "/pin", of="a", prompt="p", ttl=0).json()["until"] is None


def test_a_prompt_is_loaded_before_it_is_pinned(served: Served) -> None:
    for worker in served.workers:
        worker.pinned = {"chunks": 1, "bytes": 10, "of": 2}
    served.ask("POST", "/pin", of="a", prompt="p", ttl=60)
    assert [asked[0] for asked in served.asked()] == ["pin", "prefetch", "pin"]


def test_a_full_tier_pins_no_more(served: Served) -> None:
    served.workers[0].pinned = {"chunks": 0, "bytes": 0, "of": 2, "is_full": True}
    response = served.ask("POST", "/pin", of="a", prompt="p", ttl=60)
    assert response.status_code == 507
    assert [asked[0] for asked in served.asked()] == ["pin", "unpin"]


def test_a_pin_whose_prompt_cannot_be_computed_is_taken_back(served: Served) -> None:
    for worker in served.workers:
        worker.pinned = {"chunks": 1, "bytes": 10, "of": 2}
    response = served.ask("POST", "/pin", of="a", prompt="p", ttl=60, temperature="hot")
    assert response.status_code == 400
    assert [asked[0] for asked in served.asked()] == ["pin", "unpin"]


PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
TEXT = [{"role": "user", "content": [{"type": "text", "text": "p"}]}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": PICTURE}, "prompts of text alone"),
        ({"messages": TEXT, "documents": [{}]}, "do not know documents"),
        ({"messages": TEXT, "reasoning_effort": "low"}, "do not know reasoning_effort"),
        ({"prompt": "p", "truncate_prompt_tokens": 1}, "do not know truncate_prompt_tokens"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/pin")])
def test_a_prompt_of_other_tokens_is_refused(
    served: Served, body: dict[str, Any], reason: str, method: str, path: str
) -> None:
    response = served.ask(method, path, of="a", **body, **({"ttl": 60} if path else {}))
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
    assert served.asked() == []
    assert served.ask("DELETE", of="a", messages=TEXT).status_code == 200


def test_few_overviews_are_made_at_a_time(served: Served) -> None:
    for worker in served.workers:
        worker.may_answer.clear()
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(served.ask, "GET", of="a") for _ in range(2)]
        until(lambda: all(len(worker.asked) == 2 for worker in served.workers))
        assert served.ask("GET", of="a").status_code == 429
        # A deletion need not wait for them here.
        assert served.ask("DELETE", of="a").status_code == 200
        for worker in served.workers:
            worker.may_answer.set()
        assert [each.result().status_code for each in slow] == [200, 200]
    assert served.ask("GET", of="a").status_code == 200


@pytest.mark.parametrize("ttl", [None, -1, 86401, "60", True, [1]])
def test_a_ttl_is_up_to_a_day(served: Served, ttl: Any) -> None:
    assert served.ask("POST", "/pin", of="a", prompt="p", ttl=ttl).status_code == 400


def test_pins_of_nobody_need_the_second_key(served: Served) -> None:
    assert served.ask("POST", "/pin", prompt="p", ttl=60).status_code == 403
    assert served.ask("POST", "/pin", key=KEY, prompt="p", ttl=60).status_code == 200


def test_a_worker_that_does_not_listen(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = served.server.model.cache_control._paths[0].parent  # type: ignore[union-attr]
    monkeypatch.setattr(LMCacheModel, "cache_control", CacheControl(directory, 3))
    response = served.ask("GET")
    assert response.status_code == 501
    assert "worker 2 cannot be asked" in response.json()["error"]["message"]
    monkeypatch.setattr(LMCacheModel, "cache_control", None)
    assert served.ask("GET").status_code == 501


def test_a_failure_in_a_worker_shows_no_prompt(served: Served) -> None:
    def fail(**_: Any) -> Any:
        raise ValueError("the secret prompt")

    served.workers[0].pin = fail  # type: ignore[method-assign, assignment]
    try:
        response = served.ask("POST", "/pin", of="a", prompt="p", ttl=60)
    finally:
        del served.workers[0].pin
    assert response.status_code == 500
    assert "secret" not in response.text


def test_the_routes_are_off_by_default() -> None:
    with serving() as server:
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/prefetch"), ("POST", "/pin")):
            response = server.client.request(method, CACHE + path)
            assert response.status_code == 404
