"""A network of pods, and the volumes of their ConfigMaps and Secrets."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cluster.container import Image, Pod, Running, quantity, start
from tests.support.cluster.kserve import MODEL_VOLUME
from tests.support.limits import limited

_numbers = itertools.count(2)


@dataclass
class Cluster:
    """Pods that reach each other by the names of their Services and by their own.

    Attributes:
        directory: for volumes and logs.
        documents: what is applied.
        secrets: what people create beside it, by name and key.
        model: what the storage initializer downloads; nothing before it has run.
        claims: where the volumes of PersistentVolumeClaims lie.
    """

    directory: Path
    documents: Sequence[dict[str, Any]]
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    model: Path | None = None
    claims: Mapping[str, Path] = field(default_factory=dict)
    _bridge: str = field(default_factory=lambda: f"kl{os.getpid()}")
    _subnet: str = field(default_factory=lambda: f"10.213.{random.randrange(250)}")
    _stack: ExitStack = field(default_factory=ExitStack)
    _pods: list[Pod] = field(default_factory=list)
    _names: list[tuple[str, ...]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def up(cls, directory: Path, *arguments: Any, **fields: Any) -> Iterator[Cluster]:
        """A cluster without pods; at the end all of it is gone."""
        cluster = cls(directory, *arguments, **fields)
        directory.chmod(0o755)  # containers have other users
        with cluster._stack:
            _ip("link", "add", cluster._bridge, "type", "bridge")
            cluster._stack.callback(_ip, "link", "del", cluster._bridge)
            _ip("addr", "add", f"{cluster._subnet}.1/24", "dev", cluster._bridge)
            _ip("link", "set", cluster._bridge, "up")
            yield cluster

    def pod(self, name: str, spec: dict[str, Any], *names: str) -> Pod:
        """A pod of a specification; ``names`` are more that lead to it."""
        number = next(_numbers)
        pod = Pod(
            name,
            spec,
            f"{self._subnet}.{number}",
            f"{self._bridge}-{number}",
            self.directory / f"hosts-{name}",
            {each["name"]: self._volume(name, each) for each in spec.get("volumes", [])},
            self.secrets,
        )
        self._connect(pod, number)
        self._pods.append(pod)
        self._names.append((pod.address, name, *names))
        self._write_hosts()
        return pod

    def start(self, pod: Pod, container: str, image: Image, memory: str | None = None) -> Running:
        """Start a container; it ends with the cluster.

        Args:
            memory: a limit in place of the container's.
        """
        limits = pod.container(container).get("resources", {}).get("limits", {})
        limit = quantity(memory or limits["memory"])
        prefix = self._stack.enter_context(limited(limit))
        running = start(pod, container, image, self.directory, prefix)
        self._stack.callback(
            running.process.stop, pod.spec.get("terminationGracePeriodSeconds", 30)
        )
        return running

    def _volume(self, pod: str, volume: Mapping[str, Any]) -> Path:
        folder = self.directory / f"volume-{pod}-{volume['name']}"
        folder.mkdir()
        folder.chmod(0o777)
        if volume["name"] == MODEL_VOLUME and self.model:
            return self.model
        if claim := volume.get("persistentVolumeClaim"):
            return self.claims[claim["claimName"]]
        sources = volume.get("projected", {}).get("sources", [])
        for source in sources or [volume]:
            for name, text in self._files(source).items():
                (folder / name).write_text(text)
                (folder / name).chmod(0o644)
        return folder

    def _files(self, source: Mapping[str, Any]) -> Mapping[str, str]:
        """What a ConfigMap or a Secret lays into a volume."""
        reference = source.get("configMap") or source.get("secret")
        if reference is None:
            assert "emptyDir" in source, f"a volume of {sorted(source)}"
            return {}
        name = reference.get("name") or reference.get("secretName")
        held: Mapping[str, str] | None = self.secrets.get(name)
        if "configMap" in source:
            maps = [d for d in self.documents if d["kind"] == "ConfigMap"]
            held = next((d["data"] for d in maps if d["metadata"]["name"] == name), None)
        if held is None:
            assert reference.get("optional"), f"{name} is not there, and the pod waits for it"
            return {}
        items = reference.get("items") or [{"key": key, "path": key} for key in held]
        return {item["path"]: held[item["key"]] for item in items if item["key"] in held}

    def _connect(self, pod: Pod, number: int) -> None:
        """A cable between the pod's network namespace and the bridge."""
        outer, inner = f"{self._bridge}o{number}", f"{self._bridge}i{number}"
        _ip("netns", "add", pod.namespace)
        self._stack.callback(_ip, "netns", "del", pod.namespace)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
        _ip("link", "set", inner, "netns", pod.namespace)
        _ip("link", "set", outer, "master", self._bridge, "up")
        inside = ("-n", pod.namespace)
        _ip(*inside, "addr", "add", f"{pod.address}/24", "dev", inner)
        _ip(*inside, "link", "set", inner, "up")
        _ip(*inside, "link", "set", "lo", "up")

    def _write_hosts(self) -> None:
        """Names for all pods, in place of the cluster's DNS."""
        lines = ["127.0.0.1 localhost"]
        lines += [" ".join(names) for names in self._names]
        for pod in self._pods:
            pod.hosts.write_text("\n".join(lines) + "\n")


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"ip {' '.join(words)}: {result.stderr}"
