"""Where models come from, and where they must not: restricted namespaces, images."""

from __future__ import annotations

import uuid

import pytest

from tests.cluster.conftest import RESTRICTED, SERVICE, cached_tokens, chat, long_prompt, service
from tests.support.kubernetes import Api, Namespace
from tests.support.options import option

pytestmark = pytest.mark.kubernetes


def test_a_downloaded_model_in_a_restricted_namespace(api: Api) -> None:
    """With KServe's kustomize defaults this needs what docs/operators/security.md says."""
    with Namespace.made(api, option("--cluster-image"), RESTRICTED) as namespace:
        namespace.apply([service()])
        _answers_from_its_cache(namespace)


def test_a_model_from_an_image(api: Api) -> None:
    model = option("--cluster-oci-model")
    assert model, "no --cluster-oci-model: make test-cluster OCI_MODEL=oci://…"
    with Namespace.made(api, option("--cluster-image")) as namespace:
        namespace.apply([service(model=model)])
        _answers_from_its_cache(namespace)
        assert namespace.restarts(SERVICE) == 0


def _answers_from_its_cache(namespace: Namespace) -> None:
    (pod,) = namespace.wait_until_ready(SERVICE)
    prompt = long_prompt(uuid.uuid4().hex)
    assert cached_tokens(chat(namespace, pod, prompt)) == 0
    assert cached_tokens(chat(namespace, pod, prompt)) >= 1024
