"""A picture is part of the key: its KV is found again, and never that of another picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.answers import answer_of
from tests.support.pictures import FAMILIES, picture
from tests.support.server import Server, cached_tokens, engine_environment, running
from tests.support.stores import Store

CHUNK = 32
ARGUMENTS = (
    "--dtype=float32",
    "--max-model-len=2048",
    "--no-enable-prefix-caching",
    "--block-size=16",
    "--limit-mm-per-prompt",
    '{"image": 4}',
    "--lmcache",
    f"chunk_size={CHUNK}",
    "--lmcache",
    "max_local_cpu_size=0.2",
)
BEFORE = "These words stand before every picture of this test, and are more than one chunk. " * 3


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[family](tmp_path_factory.mktemp("models") / family)


def environment(store: Store) -> dict[str, str]:
    return engine_environment(LMCACHE_REMOTE_URL=store.url)


@pytest.fixture(scope="module")
def server(model: Path, redis_store: Store, logs: Path) -> Iterator[Server]:
    options: dict[str, Any] = {"environ": environment(redis_store)}
    with running(logs / "server.log", *ARGUMENTS, model=(f"--model_id={model}",), **options) as it:
        yield it


def ask(server: Server, *pictures: str, salt: str = "", after: str = "What is it?") -> Any:
    content: list[Any] = [{"type": "text", "text": BEFORE}]
    for url in pictures:
        content.append({"type": "image_url", "image_url": {"url": url}})
        content.append({"type": "text", "text": " is a picture. "})
    content.append({"type": "text", "text": after})
    return server.client().chat.completions.create(
        model=server.name,
        messages=[{"role": "user", "content": content}],
        max_tokens=8,
        temperature=0,
        logprobs=True,
        extra_body={"cache_salt": salt} if salt else {},
    )


def test_a_picture_is_found_again_and_no_other(server: Server) -> None:
    one, other = picture("one"), picture("other")
    first = ask(server, one)
    assert cached_tokens(first) == 0
    again = ask(server, one)
    assert cached_tokens(again) == first.usage.prompt_tokens // CHUNK * CHUNK
    assert answer_of(again).is_like(answer_of(first))

    computed = ask(server, other, salt="computes it")
    assert cached_tokens(computed) == 0
    text = len(server.client().post("/tokenize", body={"prompt": BEFORE}, cast_to=dict)["tokens"])
    found = ask(server, other)
    # The text before the picture is shared, and nothing after it.
    assert text // CHUNK * CHUNK - CHUNK <= cached_tokens(found) <= text + CHUNK
    assert answer_of(found).is_like(answer_of(computed))
    assert not answer_of(found).is_like(answer_of(first))


def test_pictures_share_up_to_the_first_that_differs(server: Server) -> None:
    shared, second, third = picture("shared"), picture("second"), picture("third")
    ask(server, shared, second)
    computed = ask(server, shared, third, salt="computes them")
    found = ask(server, shared, third)
    assert 0 < cached_tokens(found) < cached_tokens(ask(server, shared, second))
    assert answer_of(found).is_like(answer_of(computed))
    # The same two in the other order.
    turned = ask(server, third, shared)
    assert cached_tokens(turned) <= cached_tokens(found)
    assert answer_of(turned).is_like(answer_of(ask(server, third, shared, salt="turned")))


def test_a_client_names_no_picture(server: Server) -> None:
    part = {"type": "image_url", "image_url": {"url": picture("named")}, "uuid": "mine"}
    with pytest.raises(openai.BadRequestError, match="this server hashes the content itself"):
        server.client().chat.completions.create(
            model=server.name,
            messages=[{"role": "user", "content": [part]}],  # type: ignore[list-item, misc]
        )


def test_another_replica_finds_it(
    server: Server, model: Path, redis_store: Store, logs: Path
) -> None:
    kept = picture("kept")
    first = ask(server, kept)
    options: dict[str, Any] = {"environ": environment(redis_store)}
    with running(logs / "other.log", *ARGUMENTS, model=(f"--model_id={model}",), **options) as it:
        found = ask(it, kept)
        assert cached_tokens(found) == first.usage.prompt_tokens // CHUNK * CHUNK
        assert answer_of(found).is_like(answer_of(first))
        new = ask(it, picture("new"))
        assert answer_of(new).is_like(answer_of(ask(server, picture("new"), salt="computes it")))
