"""The sets of documents that people apply together, as kustomize renders them.

Kustomize is the one inside ``kubectl``, from a wheel of the test requirements.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.pods import Document

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ROOT / "servingruntime"
GUIDE = RUNTIMES / "examples" / "guide"
NODE_CACHE = RUNTIMES / "examples" / "node-cache"
INFERENCE_POOL = RUNTIMES / "examples" / "inference-pool"
COMPONENTS = RUNTIMES / "components"
LLM = RUNTIMES / "llm"
MONITORING = COMPONENTS / "monitoring"

# Parts of other components, not for use alone.
PARTS = {"image", "remote-store"}
STORES = ("redis", "redis-sentinel", "valkey", "lmcache-server", "mooncake")
# What a component needs before it.
NEEDS = {
    "tls": ["redis"],
    "tls-cert-manager": ["redis", "tls"],
    "any-user": ["redis-sentinel"],
}
# Everything that goes with any store.
OTHERS = ("predictor-isolation", "monitoring", "autoscaling", "preflight", "compile-cache")
ALTERNATIVES = {"autoscaling-hpa", "preflight-cpu", "any-user"}  # to one of those above
ANY_SERVICE = "two-replicas"


def render(folder: Path) -> str:
    """What ``kubectl apply -k`` would send."""
    kubectl = Path(sys.executable).with_name("kubectl")
    assert kubectl.exists(), f"kubectl is not installed beside {sys.executable}"
    rendered = subprocess.run(
        [str(kubectl), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


def load(text: str) -> list[Document]:
    """The documents of a text; new ones at every call."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, loader) if document]


def alert_groups() -> list[Document]:
    """The groups of the PrometheusRule, as Prometheus's own files have them."""
    rule = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    groups: list[Document] = rule["spec"]["groups"]
    return groups


def kustomize(resources: Sequence[Path], components: Sequence[str]) -> str:
    """The runtimes with some resources and components, rendered."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory).resolve()
        kustomization: dict[str, Any] = {"resources": [], "components": []}
        for resource in resources:
            if resource.is_dir():
                kustomization["resources"].append(os.path.relpath(resource, folder))
            else:  # files must lie below the kustomization
                (folder / resource.name).write_text(resource.read_text())
                kustomization["resources"].append(resource.name)
        for name in (*components, "image"):
            kustomization["components"].append(os.path.relpath(COMPONENTS / name, folder))
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return render(folder)


def components() -> list[str]:
    """Those that are switched on by one line."""
    return sorted({path.name for path in COMPONENTS.iterdir()} - PARTS)


def examples() -> list[Path]:
    """The examples of one file each."""
    return sorted((RUNTIMES / "examples").glob("*.yaml"))


def llm_examples() -> list[Path]:
    """The examples of the kind LLMInferenceService."""
    return sorted((LLM / "examples").glob("*.yaml"))


def example(name: str) -> Path:
    return RUNTIMES / "examples" / f"{name}.yaml"


def _sets() -> dict[str, Callable[[], str]]:
    base, service = RUNTIMES / "base", example(ANY_SERVICE)
    found: dict[str, Callable[[], str]] = {
        "runtimes": partial(render, RUNTIMES),
        "namespaced": partial(render, RUNTIMES / "namespaced"),
        "guide": lambda: render(RUNTIMES) + "---\n" + render(GUIDE),
        "node cache": lambda: render(RUNTIMES) + "---\n" + render(NODE_CACHE),
        "inference pool": lambda: render(RUNTIMES) + "---\n" + render(INFERENCE_POOL),
    }
    for folder in sorted((RUNTIMES / "overlays").iterdir()):
        found[f"overlay {folder.name}"] = partial(render, folder)
    for path in examples():
        found[f"example {path.stem}"] = partial(kustomize, [base, path], [])
    found["llm"] = partial(render, LLM)
    for path in llm_examples():
        found[f"llm {path.stem}"] = partial(kustomize, [LLM, path], [])
    for name in components():
        chosen = [*NEEDS.get(name, []), name]
        found[f"component {name}"] = partial(kustomize, [base, service], chosen)
    for store in STORES:
        secured = ("tls", "tls-cert-manager") if store in ("redis", "valkey") else ()
        chosen = [store, *secured, *OTHERS]
        found[f"all with {store}"] = partial(kustomize, [base, service], chosen)
    return found


# Every set that is checked, by the name that a test shows.
SETS = _sets()


@functools.cache
def _rendered(name: str) -> str:
    return SETS[name]()


def documents(name: str) -> list[Document]:
    """The documents of a set; new ones at every call."""
    return load(_rendered(name))
