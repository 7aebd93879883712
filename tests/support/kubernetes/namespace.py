"""A namespace of a test: what it applies there, waits for, and takes away again."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.packaging.manifests import COMPONENTS, RUNTIMES
from tests.support.kubernetes.api import Api, ApiError, Document, condition, wait

PREFIX = "kserve-lmcache-test-"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
CONTAINER = "kserve-container"
READY_SECONDS = 1800.0
GONE_SECONDS = 300.0


@dataclass(frozen=True)
class Namespace:
    """A namespace that nobody else uses.

    Attributes:
        image: the image of this package, in place of the manifests' own.
    """

    api: Api
    name: str
    image: str

    @classmethod
    @contextmanager
    def made(
        cls, api: Api, image: str, labels: Mapping[str, str] | None = None
    ) -> Iterator[Namespace]:
        """Make one, and delete it with all that is in it."""
        name = PREFIX + uuid.uuid4().hex[:8]
        metadata = {"name": name, "labels": dict(labels or {})}
        api.create("Namespace", "", {"kind": "Namespace", "metadata": metadata})
        namespace = cls(api, name, image)
        try:
            yield namespace
        finally:
            namespace.remove()

    def remove(self) -> None:
        """Delete services first, as KServe's controller has to take its finalizers away.

        Raises:
            AssertionError: something is left after a while.
        """
        for service in self.api.find("InferenceService", self.name):
            self.api.delete("InferenceService", self.name, service["metadata"]["name"])
        with contextlib.suppress(AssertionError):  # the namespace says what is left
            wait(lambda: not self.api.find("InferenceService", self.name), GONE_SECONDS)
        self.api.delete("Namespace", "", self.name)
        wait(
            lambda: self.api.get("Namespace", "", self.name) is None,
            GONE_SECONDS,
            lambda: json.dumps((self.api.get("Namespace", "", self.name) or {}).get("status")),
        )

    def apply(
        self,
        resources: Sequence[Path | Document] = (),
        components: Sequence[str] = (),
        patches: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Apply the runtimes of this namespace with some resources and components.

        The cluster's own runtimes are left alone: a change of them would be a rollout of the
        services of other people.
        """
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory).resolve()
            text = yaml.safe_dump(self._kustomization(folder, resources, components, patches))
            (folder / "kustomization.yaml").write_text(text)
            self.api.kubectl("apply", "--namespace", self.name, "--kustomize", str(folder))

    def _kustomization(
        self,
        folder: Path,
        resources: Sequence[Path | Document],
        components: Sequence[str],
        patches: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        listed = [os.path.relpath(RUNTIMES / "namespaced", folder)]
        for number, resource in enumerate(resources):
            text = resource.read_text() if isinstance(resource, Path) else yaml.safe_dump(resource)
            (folder / f"{number}.yaml").write_text(text)
            listed.append(f"{number}.yaml")
        field, mark = ("digest", "@") if "@" in self.image else ("newTag", ":")
        repository, _, version = self.image.rpartition(mark)
        # The last: where components/image has been at work already, as in namespaced/.
        named = ("kserve-lmcache-cpu", "kserve-lmcache-gpu", "kserve-lmcache")
        images = [{"name": name, "newName": repository, field: version} for name in named]
        return {
            "resources": listed,
            "components": [os.path.relpath(COMPONENTS / name, folder) for name in components],
            "images": images,
            "patches": list(patches),
        }

    def secret(self, name: str, **values: str) -> None:
        body = {"kind": "Secret", "metadata": {"name": name}, "stringData": values}
        self.api.create("Secret", self.name, body)

    def pods(self, service: str) -> list[Document]:
        """The pods of a service that are not about to go."""
        found = self.api.find("Pod", self.name, f"{SERVICE_LABEL}={service}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def ready_pods(self, service: str) -> list[str]:
        """The names of the pods that take requests."""
        return sorted(
            pod["metadata"]["name"]
            for pod in self.pods(service)
            if condition(pod, "Ready") == "True"
        )

    def wait_until_ready(self, service: str, replicas: int = 1) -> list[str]:
        """Wait until KServe calls a service ready, and its replicas are; returns their names."""

        def ready() -> list[str]:
            found = self.api.get("InferenceService", self.name, service)
            pods = self.ready_pods(service)
            return pods if condition(found, "Ready") == "True" and len(pods) == replicas else []

        pods: list[str] = wait(ready, READY_SECONDS, lambda: self.describe(service), pause=5)
        return pods

    def wait_for_new_pods(self, service: str, old: Sequence[str]) -> list[str]:
        """Wait until a rollout has replaced all of these pods."""

        def replaced() -> list[str]:
            ready, there = (
                self.ready_pods(service),
                self.api.find("Pod", self.name, f"{SERVICE_LABEL}={service}"),
            )
            names = {pod["metadata"]["name"] for pod in there}
            return ready if len(ready) == len(old) and not names & set(old) else []

        pods: list[str] = wait(replaced, READY_SECONDS, lambda: self.describe(service), pause=5)
        return pods

    def restarts(self, service: str) -> int:
        """How often containers of a service were started again."""
        return sum(
            status["restartCount"]
            for pod in self.pods(service)
            for status in pod.get("status", {}).get("containerStatuses", [])
        )

    def describe(self, service: str) -> str:
        """What a person would look at."""
        with contextlib.suppress(ApiError):
            return self.api.kubectl(
                "describe",
                "pods",
                "--namespace",
                self.name,
                f"--selector={SERVICE_LABEL}={service}",
            )
        return "there is nothing to describe"

    def in_container(self, pod: str, *command: str, container: str = CONTAINER) -> str:
        words = ("exec", "--namespace", self.name, pod, f"--container={container}", "--")
        return self.api.kubectl(*words, *command)
