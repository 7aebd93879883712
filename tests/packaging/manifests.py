"""Loads a folder with a kustomization, with kubectl and without it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.pods import Document, containers

ROOT = Path(__file__).resolve().parents[2]
RUNTIMES = ROOT / "servingruntime"
GUIDE = RUNTIMES / "examples" / "guide"
FOLDERS = (RUNTIMES, GUIDE)


def read(folder: Path) -> list[Document]:
    """The documents of a kustomization's resources, with its ``images`` put in."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    documents: list[Document] = []
    for resource in kustomization["resources"]:
        documents += yaml.safe_load_all((folder / resource).read_text())
    for document in documents:
        for _, container in containers(document):
            for entry in kustomization.get("images", []):
                _put_image(container, entry)
    return documents


def _put_image(container: dict[str, Any], entry: dict[str, str]) -> None:
    if container.get("image", "").partition(":")[0] == entry["name"]:
        container["image"] = f"{entry.get('newName', entry['name'])}:{entry['newTag']}"


def render(folder: Path) -> list[Document]:
    """The documents that ``kubectl apply -k`` would send."""
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


# The same rules run on what either way gives; where kubectl is, both are held.
WAYS: tuple[Callable[[Path], list[Document]], ...] = (
    (read, render) if shutil.which("kubectl") else (read,)
)
