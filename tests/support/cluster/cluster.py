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
_BRIDGE = "bridge"


@dataclass
class Cluster:
    """Pods that reach each other by the names of their Services and by their own.

    The pods' bridge is in a network namespace of its own. A container engine sets this machine's
    FORWARD policy to drop and lets the rules meet what crosses a bridge (bridge-nf-call-iptables);
    no rule of this machine meets what one pod sends to another.

    Attributes:
        directory: for volumes and logs.
        documents: what is applied.
        secrets: what people create beside it, by name and key.
        model: what the storage initializer downloads; nothing before it has run.
        claims: where the volumes of PersistentVolumeClaims lie that people made before.
    """

    directory: Path
    documents: Sequence[dict[str, Any]]
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    model: Path | None = None
    claims: Mapping[str, Path] = field(default_factory=dict)
    _network: str = field(default_factory=lambda: f"kl{os.getpid()}")
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
            cluster._connect_machine()
            yield cluster

    def pod(self, name: str, spec: dict[str, Any], *names: str) -> Pod:
        """A pod of a specification; ``names`` are more that lead to it."""
        number = next(_numbers)
        pod = Pod(
            name,
            spec,
            f"{self._subnet}.{number}",
            f"{self._network}-{number}",
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
            return self._claimed(claim["claimName"])
        sources = volume.get("projected", {}).get("sources", [])
        for source in sources or [volume]:
            for name, text in self._files(source).items():
                (folder / name).write_text(text)
                (folder / name).chmod(0o644)
        return folder

    def _claimed(self, name: str) -> Path:
        """One folder for a claim, whichever pods mount it: what a provisioner would make of it."""
        if name in self.claims:
            return self.claims[name]
        applied = self._applied("PersistentVolumeClaim", name)
        assert applied, f"the claim {name} is not there, and the pod waits for it"
        folder = self.directory / f"claim-{name}"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
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
            applied = self._applied("ConfigMap", name)
            held = applied["data"] if applied else None
        if held is None:
            assert reference.get("optional"), f"{name} is not there, and the pod waits for it"
            return {}
        items = reference.get("items") or [{"key": key, "path": key} for key in held]
        return {item["path"]: held[item["key"]] for item in items if item["key"] in held}

    def _applied(self, kind: str, name: str) -> Mapping[str, Any] | None:
        found = (d for d in self.documents if (d["kind"], d["metadata"]["name"]) == (kind, name))
        return next(found, None)

    def _connect_machine(self) -> None:
        """The bridge, and a cable between it and this machine."""
        outer, inner = f"{self._network}h", "machine"
        self._namespace(self._network)
        inside = ("-n", self._network)
        _ip(*inside, "link", "add", _BRIDGE, "type", "bridge")
        _ip(*inside, "link", "set", _BRIDGE, "up")
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", self._network)
        # A namespace ends a while after it is deleted, and its cables with it.
        self._stack.callback(_ip, "link", "del", outer)
        _ip(*inside, "link", "set", inner, "master", _BRIDGE, "up")
        _ip("addr", "add", f"{self._subnet}.1/24", "dev", outer)
        _ip("link", "set", outer, "up")

    def _connect(self, pod: Pod, number: int) -> None:
        """A cable between the pod's network namespace and the bridge."""
        outer, inner = f"pod{number}", "eth0"
        self._namespace(pod.namespace)
        of_bridge, of_pod = ("-n", self._network), ("-n", pod.namespace)
        veth = ("type", "veth", "peer", "name", inner, "netns", pod.namespace)
        _ip(*of_bridge, "link", "add", outer, *veth)
        _ip(*of_bridge, "link", "set", outer, "master", _BRIDGE, "up")
        _ip(*of_pod, "addr", "add", f"{pod.address}/24", "dev", inner)
        _ip(*of_pod, "link", "set", inner, "up")
        _ip(*of_pod, "link", "set", "lo", "up")

    def _namespace(self, name: str) -> None:
        """A network namespace until the cluster's end."""
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "del", name)

    def _write_hosts(self) -> None:
        """Names for all pods, in place of the cluster's DNS."""
        lines = ["127.0.0.1 localhost"]
        lines += [" ".join(names) for names in self._names]
        for pod in self._pods:
            pod.hosts.write_text("\n".join(lines) + "\n")


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"ip {' '.join(words)}: {result.stderr}"
