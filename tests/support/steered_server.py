"""A server without an engine whose routes of the cache are on, and two workers that listen."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.connector.control import Control, socket_path
from kserve_lmcache.engine.cache_control import CacheControl
from kserve_lmcache.engine.model import LMCacheModel
from kserve_lmcache.identity.tag import Selection, Tag, digest
from tests.support.http import PREFIX, HTTPServer, serving

CACHE = f"{PREFIX}/v1/cache"
HEADER, ADMIN = "X-Tenant-Id", "X-Cache-Admin-Key"
KEY = "the second key"
TOKENS = [1, 2, 3]


class Worker:
    """A steering that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.tags = [(Tag(digest("s"), digest("a"), ""), 3), (Tag(), 2)]
        self.error = ""
        self.reason = ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.pinned: Mapping[str, Any] = {"chunks": 2, "bytes": 20, "of": 2}

    def usage(self, selection: Selection) -> Any:
        self.asked.append(selection)
        self.may_answer.wait(10)
        rows = [
            [tag.salt, tag.tenant, tag.adapter, chunks, 10 * chunks, 1.5]
            for tag, chunks in self.tags
            if tag in selection
        ]
        return {
            "local_cpu": {"place": f"worker {id(self)}", "tags": rows},
            "disk": {"place": "/shared", "tags": rows},
            "remote": {"error": "it is away"},
        }

    def delete(self, selection: Selection) -> Any:
        self.asked.append(selection)
        return self._deleted()

    def delete_prompt(self, tokens: Sequence[int], tag: str) -> Any:
        self.asked.append((tokens, tag))
        return self._deleted()

    def prefetch(self, tokens: Sequence[int], tag: str) -> Any:
        self.asked.append(("prefetch", tokens, tag))
        return {"local_cpu": {"chunks": 2, "of": 2}}

    def pin(self, tokens: Sequence[int], tag: str, seconds: float, reason: str) -> Any:
        self.asked.append(("pin", tokens, tag, seconds))
        self.reason = reason
        return {"local_cpu": self.pinned, "remote": {"chunks": 2}}

    def unpin(self, tokens: Sequence[int], tag: str, reason: str) -> Any:
        assert reason == self.reason
        self.asked.append(("unpin", tokens, tag))
        return {"local_cpu": {}}

    def _deleted(self) -> Any:
        remote = {"error": self.error} if self.error else {"chunks": 4}
        return {"local_cpu": {"chunks": 4}, "remote": remote}


class Served:
    """A server whose two workers listen.

    Attributes:
        key_file: has the second key.
    """

    def __init__(self, server: HTTPServer, workers: Sequence[Worker], key_file: Path) -> None:
        self.server = server
        self.workers = workers
        self.key_file = key_file

    def ask(self, method: str, path: str = "", of: str = "", key: str = "", **body: Any) -> Any:
        headers = {HEADER: of} if of else {}
        headers |= {ADMIN: key} if key else {}
        json = {"json": body} if method != "GET" else {}
        return self.server.client.request(method, CACHE + path, headers=headers, **json)

    def asked(self) -> Any:
        """What each worker was asked since the last call; the same of all."""
        asked = [worker.asked[:] for worker in self.workers]
        for worker in self.workers:
            worker.asked.clear()
        assert asked[0] == asked[1]
        return asked[0]


async def tokenize(request: Any, raw_request: Any) -> Any:
    return SimpleNamespace(tokens=TOKENS)


async def complete(request: Any, raw_request: Any) -> Any:
    fields = request.model_dump()
    assert fields.get("max_completion_tokens", fields["max_tokens"]) == 1
    assert not request.stream
    return SimpleNamespace(usage=SimpleNamespace(prompt_tokens=len(TOKENS)))


@contextmanager
def steered_server(**limits: Any) -> Iterator[Served]:
    """The server, with these limits beside its own."""
    with (
        # The path of a socket is short.
        TemporaryDirectory() as name,
        pytest.MonkeyPatch.context() as patch,
        ExitStack() as stack,
    ):
        directory = Path(name)
        key_file = directory / "key"
        key_file.write_text(f"{KEY}\n")
        own = {"tenant_header": HEADER, "cache_admin_key_file": str(key_file)}
        server = stack.enter_context(serving("cache", **{**own, **limits}))
        workers = [Worker(), Worker()]
        controls = [
            Control(socket_path(directory, rank), worker)  # type: ignore[arg-type]
            for rank, worker in enumerate(workers)
        ]
        patch.setattr(LMCacheModel, "cache_control", CacheControl(directory, 2))
        model = server.model
        model.engine_config = SimpleNamespace(scheduler_config=SimpleNamespace(policy="fcfs"))
        model.vllm_app.state.serving_tokenization = SimpleNamespace(create_tokenize=tokenize)
        model.chat = complete
        model.openai_serving_completion = SimpleNamespace(create_completion=complete)
        model.openai_serving_models.lora_requests = {"adapter": "the adapter"}
        model.engine_client = SimpleNamespace(
            engine_core=SimpleNamespace(adapters=SimpleNamespace(content=content))
        )
        yield Served(server, workers, key_file)
        for control in controls:
            control.close()


async def content(lora: Any) -> str:
    return "content of " + str(lora)
