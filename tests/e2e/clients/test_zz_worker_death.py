"""The last of the shared server: what its clients see when the engine's worker dies."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from tests.e2e.clients.conftest import Clients
from tests.support.processes import last_line, wait_for_end


def test_the_death_of_the_worker_is_told_at_once_and_ends_everything(clients: Clients) -> None:
    family = clients.server.process.family()
    worker = next(process for process in family if "Worker" in process.name())
    stream = clients.openai.chat.completions.create(
        model=clients.name,
        messages=[{"role": "user", "content": "Tell me everything."}],
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(stream)
    began = time.monotonic()
    worker.kill()
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        for _ in stream:
            pass
    assert time.monotonic() - began < 10
    assert clients.server.process.wait(15) == 1
    assert wait_for_end(family, seconds=5) == []
    line = last_line(clients.server.process)
    assert line.startswith("kserve-lmcache: error: vLLM's engine has died: Worker proc ")
    assert "raise the container's memory limit" in line
    assert line.endswith("(exit code 1)")
