"""Examples of the manifests, started: what KServe makes of them, run as the kubelet runs it.

The real entry point with the merged command, args and environment, under the containers' user,
volumes and memory limits, with the overlay's Redis; on the CPU, with the small model in place of
each example's.
"""

from __future__ import annotations

import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.packaging.manifests import (
    COMPONENTS,
    GUIDE,
    RUNTIMES,
    example,
    examples,
    kustomize,
    load,
    render,
)
from tests.support.cluster import Cluster
from tests.support.cluster.container import ContainerProcess
from tests.support.cluster.deployment import (
    SECRETS,
    Replica,
    claim_with,
    hub_cache,
    of_kind,
    preflight,
    start_replica,
    start_store,
    wait_until_ready,
)
from tests.support.cluster.kserve import storage_uri
from tests.support.metrics import samples
from tests.support.models import adapter
from tests.support.server import MODEL, cached_tokens, long_prompt
from tests.support.waiting import until

# The overlay that everyone tries first: preflight, runtime, Redis, two replicas.
DEFAULT = "local"
# On many nodes (test_kubernetes_multinode.py), and by a sidecar in the same process namespace
# (tests/unit/identity/test_arrival.py).
NOT_HERE = {"multinode", "oci"}
ALL = ["local", "guide", *sorted({path.stem for path in examples()} - NOT_HERE)]
# What a request says beside its prompt, and how it must be answered where another's would not be.
MODELS = {"guide": "llama3", "lora": "sql"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
ENDLESS = {"ignore_eos": True}
TENANT = {"tenants": {"X-Tenant-Id": "one"}}


def _documents(name: str) -> list[dict[str, Any]]:
    if name == "local":
        return load(render(RUNTIMES / "overlays" / "local"))
    if name == "guide":
        return load(render(RUNTIMES)) + load(render(GUIDE))
    return load(kustomize([RUNTIMES / "base", example(name)], ["redis"]))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == DEFAULT else pytest.mark.exhaustive) for name in ALL],
)
def test_the_second_replica_takes_what_the_first_computed(name: str, tmp_path: Path) -> None:
    claims = {"adapters": tmp_path / "adapters"}
    if name == "lora":
        claims["adapters"].mkdir()
        for seed, each in enumerate(("sql", "support")):
            for file in adapter(claims["adapters"] / each, seed).iterdir():
                file.chmod(0o644)  # the server has another user
    if name == "model-id":
        hub_cache(tmp_path, "meta-llama/Llama-3.2-1B-Instruct", MODEL)
    applied, headers = _documents(name), TENANT.get(name, {})
    (service,) = of_kind(applied, "InferenceService")
    if (storage_uri(service) or "").startswith("pvc://"):
        claims["models"] = claim_with(tmp_path / "models", service, MODEL)
    with Cluster.up(tmp_path, applied, SECRETS, MODEL, claims) as cluster:
        _, store = start_store(cluster)
        if "initContainers" in service["spec"]["predictor"]:
            checked = preflight(cluster, service, "preflight")
            assert checked.process.wait(60) == 0, checked.process.output()
        first, second = (
            start_replica(cluster, service, f"replica-{number}", MODELS.get(name))
            for number in (0, 1)
        )
        if name == DEFAULT:
            first.process.wait_until(lambda: first.holds("livenessProbe"), seconds=60)
            assert not first.holds("startupProbe")
            assert not first.holds("readinessProbe")
        for replica in (first, second):
            wait_until_ready(replica)
        prompt = long_prompt(name, words=960)
        stored = first.chat(prompt, extra_headers=headers)
        assert cached_tokens(stored) == 0
        first.process.wait_until(lambda: len(store.chunks()) >= 4, seconds=20)
        loaded = second.chat(prompt, extra_headers=headers)
        assert stored.usage is not None
        total, cached = stored.usage.prompt_tokens, cached_tokens(loaded)
        print(f"{name}: {cached} of {total} tokens from the first replica")
        assert total > 1024
        assert cached >= 1024
        if headers:
            assert cached_tokens(second.chat(prompt, extra_headers={"X-Tenant-Id": "two"})) == 0
        if name == DEFAULT:
            found = samples(second.url)
            assert found["vllm:external_prefix_cache_hits_total"] >= 1024
            # What dashboard, alerts and autoscaling ask for.
            assert len(_asked_metrics()) > 8
            assert _asked_metrics() - set(found) == set()
            _probes_know_its_end(first)
            _probes_know_its_engines_end(second)


def _probes_know_its_end(replica: Replica) -> None:
    assert all(map(replica.holds, PROBES))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(replica.chat, "Count.", max_tokens=200, extra_body=ENDLESS)
        replica.process.wait_until(
            lambda: samples(replica.url)["vllm:num_requests_running"] == 1, seconds=20
        )
        replica.process.signal(signal.SIGTERM)
        replica.process.wait_until(lambda: not replica.holds("readinessProbe"), seconds=5)
        assert replica.holds("livenessProbe")
        usage = running.result().usage
    assert usage is not None
    assert usage.completion_tokens == 200
    assert replica.process.wait(30) == 0


def _probes_know_its_engines_end(replica: Replica) -> None:
    assert all(map(replica.holds, PROBES))
    assert isinstance(replica.process, ContainerProcess)
    family = replica.process.inner.children(recursive=True)
    next(each for each in family if "EngineCore" in each.name()).kill()
    until(lambda: not any(map(replica.holds, PROBES[1:])), seconds=20, pause=0.1)
    assert replica.process.wait(30) == 1


def _asked_metrics() -> set[str]:
    """The names of metrics in the components for monitoring and autoscaling."""
    texts = [
        path.read_text()
        for name in ("monitoring", "autoscaling")
        for path in (COMPONENTS / name).iterdir()
    ]
    return set(re.findall(r"\b((?:vllm:|lmcache:|kserve_lmcache_)[a-z_0-9]+)", "\n".join(texts)))
