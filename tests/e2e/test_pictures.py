"""A picture is part of the key: its KV is found again, and never that of another picture."""

from __future__ import annotations

import base64
import io
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.support.answers import answer_of
from tests.support.server import ROOT, Server, cached_tokens, engine_environment, running
from tests.support.stores import Store
from tests.support.torchvision import python_path

CHUNK = 32
ARGUMENTS = (
    "--dtype=float32",
    "--max-model-len=2048",
    "--no-enable-prefix-caching",
    "--block-size=32",
    "--limit-mm-per-prompt",
    '{"image": 4}',
    "--lmcache",
    f"chunk_size={CHUNK}",
    "--lmcache",
    "max_local_cpu_size=0.2",
    "--remote-lookup-timeout=2",  # on a busy machine
)
BEFORE = "These words stand before every picture of this test, and are more than one chunk. " * 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ``PYTHONPATH`` with torchvision."""
    return python_path(tmp_path_factory.mktemp("torchvision"))


@pytest.fixture(scope="module", params=[pytest.param("llava", marks=pytest.mark.slow), "qwen2-vl"])
def model(
    request: pytest.FixtureRequest, path: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("models") / request.param
    command = [sys.executable, "-m", "tests.support.pictures", request.param, str(directory)]
    subprocess.run(
        command, cwd=ROOT, env=engine_environment(PYTHONPATH=path), check=True, timeout=120
    )
    return directory


@pytest.fixture(scope="module")
def options(path: str, model: Path, redis_store: Store) -> dict[str, Any]:
    """Of a server of the model with the Redis."""
    environ = engine_environment(PYTHONPATH=path, LMCACHE_REMOTE_URL=redis_store.url)
    return {"environ": environ, "model": (f"--model_id={model}",)}


@pytest.fixture(scope="module")
def server(options: dict[str, Any], logs: Path) -> Iterator[Server]:
    with running(logs / "server.log", *ARGUMENTS, **options) as server:
        yield server


def picture(seed: str, side: int = 112) -> str:
    """A picture of random pixels, as the URL of a request."""
    pixels = random.Random(seed).randbytes(side * side * 3)
    written = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


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


@pytest.mark.parametrize("embeddings", [{}, None], ids=["without a tensor", "named alone"])
def test_embeddings_are_refused_as_without_a_connector(server: Server, embeddings: Any) -> None:
    part = {"type": "image_embeds", "image_embeds": embeddings, "uuid": None}
    with pytest.raises(openai.BadRequestError, match="--enable-mm-embeds"):
        server.client().chat.completions.create(
            model=server.name,
            messages=[{"role": "user", "content": [part]}],  # type: ignore[list-item, misc]
        )


def test_another_replica_finds_it(server: Server, options: dict[str, Any], logs: Path) -> None:
    kept = picture("kept")
    first = ask(server, kept)
    with running(logs / "other.log", *ARGUMENTS, **options) as it:
        found = ask(it, kept)
        assert cached_tokens(found) == first.usage.prompt_tokens // CHUNK * CHUNK
        assert answer_of(found).is_like(answer_of(first))
        new = ask(it, picture("new"))
        assert answer_of(new).is_like(answer_of(ask(server, picture("new"), salt="computes it")))
