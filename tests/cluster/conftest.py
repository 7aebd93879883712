"""The cluster, and what the tests apply there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.packaging.manifests import RUNTIMES
from tests.support.kubernetes import Api, Namespace
from tests.support.options import option

SERVICE = "smollm2"
PORT = 8080
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="session")
def api() -> Api:
    assert option("--cluster-image"), "no --cluster-image: make test-cluster IMAGE=…"
    return Api(option("--cluster-kubeconfig"))


@pytest.fixture(scope="module")
def namespace(api: Api) -> Iterator[Namespace]:
    """A namespace of the module's own, gone at its end."""
    with Namespace.made(api, option("--cluster-image")) as made:
        yield made


def service(name: str = SERVICE, replicas: int = 1, model: str = "") -> dict[str, Any]:
    """The service of the overlay for a laptop, with the model that the cluster can get."""
    text = (RUNTIMES / "overlays" / "local" / "inferenceservice.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    document["metadata"]["name"] = name
    predictor = document["spec"]["predictor"]
    predictor |= {"minReplicas": replicas, "maxReplicas": replicas}
    predictor["model"]["storageUri"] = model or option("--cluster-model")
    return document


def small_store() -> dict[str, Any]:
    """The overlay's patch: a store of one GiB."""
    path = RUNTIMES / "overlays" / "local" / "kustomization.yaml"
    (patch,) = yaml.safe_load(path.read_text())["patches"]
    return dict(patch)


def chat(namespace: Namespace, pod: str, text: str, model: str = SERVICE) -> dict[str, Any]:
    """Ask one replica."""
    body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": text}]}
    answer: dict[str, Any] = namespace.api.post_to_pod(
        namespace.name, pod, PORT, "/openai/v1/chat/completions", body
    )
    return answer


def cached_tokens(answer: dict[str, Any]) -> int:
    details = answer["usage"].get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def long_prompt(beginning: str, words: int = 900) -> str:
    return f"{beginning}: " + " ".join(f"word{number % 97}" for number in range(words))
