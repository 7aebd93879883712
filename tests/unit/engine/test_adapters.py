"""The content of adapters: once when they are loaded, and no longer trusted when it changes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest

from kserve_lmcache.engine import adapters
from kserve_lmcache.engine.adapters import Adapters
from tests.support import models


@pytest.fixture
def lora(tmp_path: Path) -> LoRARequest:
    return LoRARequest("first", 1, str(models.adapter(tmp_path / "first", 1)))


def content(known: Adapters, lora: LoRARequest) -> str | None:
    return asyncio.run(known.content(lora))


def test_the_same_adapter_at_another_path_has_the_same_content(
    lora: LoRARequest, tmp_path: Path
) -> None:
    copy = LoRARequest("renamed", 7, str(models.adapter(tmp_path / "copy", 1)))
    other = LoRARequest("second", 2, str(models.adapter(tmp_path / "second", 2)))
    known = Adapters()
    assert content(known, lora) == content(known, copy) is not None
    assert content(known, other) not in (content(known, lora), None)


def test_files_are_hashed_once_and_in_a_thread(
    lora: LoRARequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, fingerprint = [], adapters.fingerprint

    def recorded(path: Path) -> Any:
        threads.append(threading.current_thread())
        return fingerprint(path)

    monkeypatch.setattr(adapters, "fingerprint", recorded)
    known = Adapters()
    for _ in range(3):
        assert content(known, lora)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_an_adapter_whose_files_change_is_not_trusted_any_more(lora: LoRARequest) -> None:
    known = Adapters()
    assert content(known, lora)
    weights = Path(lora.lora_path) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert content(known, lora) is None
    assert content(known, lora) is None
    # Loaded anew it has another number, and is examined anew.
    assert content(known, LoRARequest("first", 2, lora.lora_path))


def test_an_adapter_that_cannot_be_read_has_no_content(tmp_path: Path) -> None:
    assert content(Adapters(), LoRARequest("none", 1, str(tmp_path / "absent"))) is None


def test_the_adapters_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_MAX_ADAPTERS", 3)
    known = Adapters()
    for number in range(10):
        content(known, LoRARequest("none", number + 1, "/nonexistent"))
    assert len(known._known) == 3
