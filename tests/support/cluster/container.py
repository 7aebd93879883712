"""A container's environment, command and root file system, as the kubelet makes them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.support.processes import Process, send

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "sys", "dev")
_REFERENCE = re.compile(r"\$\$|\$\((\w+)\)")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9}
BIN = "/usr/local/bin"


@dataclass(frozen=True)
class Image:
    """What an image brings beside the system's files.

    Attributes:
        commands: files for ``/usr/local/bin``.
        folders: that the container sees at the same path.
        environment: of every process.
        entrypoint: where a container names no command.
        user: where a container names none; its group has the same number.
    """

    commands: Sequence[Path] = ()
    folders: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: Sequence[str] = ()
    user: int = 0


@dataclass
class Pod:
    """A pod that has an address.

    Attributes:
        spec: its specification.
        volumes: where each volume lies on this machine.
        namespace: the name of its network namespace.
        hosts: its ``/etc/hosts``.
    """

    name: str
    spec: dict[str, Any]
    address: str
    namespace: str
    hosts: Path
    volumes: dict[str, Path]
    secrets: Mapping[str, Mapping[str, str]]

    def container(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            each
            for each in [*self.spec.get("initContainers", []), *self.spec["containers"]]
            if each["name"] == name
        )
        return found

    def environment(self, container: Mapping[str, Any], image: Image) -> dict[str, str]:
        """The image's, and over it the container's with references resolved."""
        found = {"PATH": f"{BIN}:/usr/bin:/bin", "HOSTNAME": self.name, **image.environment}
        for variable in container.get("env", []):
            value = variable.get("value", "")
            if "valueFrom" in variable:
                value = self._value(variable["valueFrom"], container)
            found[variable["name"]] = _expand(value, found)
        return found

    def command(self, container: Mapping[str, Any], image: Image) -> list[str]:
        environment = self.environment(container, image)
        words = [*container.get("command", image.entrypoint), *container.get("args", [])]
        return [_expand(word, environment) for word in words]

    def _value(self, source: Mapping[str, Any], container: Mapping[str, Any]) -> str:
        if "fieldRef" in source:
            fields = {
                "metadata.name": self.name,
                "metadata.namespace": "models",
                "status.podIP": self.address,
            }
            return fields[source["fieldRef"]["fieldPath"]]
        if "resourceFieldRef" in source:
            kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
            return str(quantity(container["resources"][kind][name]))
        reference = source["secretKeyRef"]
        return self.secrets[reference["name"]][reference["key"]]


class ContainerProcess(Process):
    """Process 1 of a process namespace, and whatever is left in it when that ends."""

    @property
    def inner(self) -> psutil.Process:
        """Process 1, as this machine sees it."""
        (first,) = psutil.Process(self.pid).children()
        return first

    def signal(self, number: signal.Signals) -> None:
        send(self.inner.pid, number)

    def stop(self, seconds: float = 30) -> None:
        """As the kubelet does it: SIGTERM, and SIGKILL after a grace period."""
        if self._popen.poll() is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):  # it is ending
            self.signal(signal.SIGTERM)
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.inner.kill()  # and with it all that is in its namespace
            self._popen.wait()


@dataclass(frozen=True)
class Running:
    """A container's process."""

    pod: Pod
    process: ContainerProcess
    environment: Mapping[str, str]
    command: Sequence[str]


def start(
    pod: Pod, name: str, image: Image, directory: Path, prefix: Sequence[str] = ()
) -> Running:
    """Start a container of a pod; its log is ``directory``'s.

    Args:
        prefix: what stands before the command, for example for a memory limit.
    """
    assert os.geteuid() == 0, "namespaces, mounts and users of containers need root"
    container = pod.container(name)
    environment, command = pod.environment(container, image), pod.command(container, image)
    script = directory / f"{pod.name}-{name}.sh"
    script.write_text(_script(pod, container, image, directory, environment, command))
    unshare = ("unshare", "--mount", "--propagation=private", "--pid", "--fork")
    process = ContainerProcess(
        # Not "ip netns exec", which hides the control groups.
        [*prefix, "nsenter", f"--net=/run/netns/{pod.namespace}", *unshare, "sh", str(script)],
        directory / f"{pod.name}-{name}.log",
        {"PATH": os.environ["PATH"]},
    )
    return Running(pod, process, environment, command)


def _script(
    pod: Pod,
    container: Mapping[str, Any],
    image: Image,
    directory: Path,
    environment: Mapping[str, str],
    command: Sequence[str],
) -> str:
    """Builds the root file system in a mount namespace, goes there, and becomes the command."""
    root = directory / f"root-{pod.name}-{container['name']}"
    root.mkdir(exist_ok=True)  # it is there when the container starts again
    context = {**pod.spec.get("securityContext", {}), **container.get("securityContext", {})}
    lines = ["set -e", f"mount -t tmpfs -o mode=755 none {root}", f"cd {root}"]
    for name in _SYSTEM:
        if Path("/", name).is_symlink():
            lines.append(f"ln -s {Path('/', name).readlink()} {name}")
        else:
            lines.append(f"mkdir {name} && mount --rbind /{name} {name}")
    lines.append("mkdir proc && mount -t proc proc proc")
    # A copy: the folders of ConfigMaps may lie in it.
    lines += [
        "mount -o remount,bind,ro usr",
        "cp -a /etc etc",
        "mkdir tmp run var home",
        "ln -s /run var/run",
        "chmod 1777 tmp",
    ]
    lines.append("mount -t tmpfs -o mode=755 none usr/local/bin")
    lines += [f"cp {shlex.quote(str(path))} usr/local/bin/" for path in image.commands]
    lines += [f"mount --bind {pod.hosts} etc/hosts"]
    for mount in container.get("volumeMounts", []):
        source = pod.volumes[mount["name"]]
        if "subPath" in mount:
            source /= mount["subPath"]
            source.mkdir(parents=True, exist_ok=True)  # as the kubelet does: an empty folder
        target = re.sub(r"^/var/run/", "/run/", mount["mountPath"])
        lines += [f"mkdir -p .{target} && mount --bind {source} .{target}"]
        if mount.get("readOnly"):
            lines.append(f"mount -o remount,bind,ro .{target}")
    # After the volumes, as what is installed here may lie where one is mounted.
    for folder in image.folders:
        lines += [f"mkdir -p .{folder} && mount --bind {folder} .{folder}"]
    if context.get("readOnlyRootFilesystem"):
        read_only = ["", "/usr/local/bin", *(str(folder) for folder in image.folders)]
        lines += [f"mount -o remount,bind,ro .{path}" for path in reversed(read_only)]
    uid = context.get("runAsUser", image.user)
    # A user that the image does not know is of group 0.
    gid = context.get("runAsGroup", uid if uid == image.user else 0)
    assert uid or not context.get("runAsNonRoot"), f"{container['name']} would run as root"
    user = [
        "setpriv",
        f"--reuid={uid}",
        f"--regid={gid}",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    if context.get("allowPrivilegeEscalation") is False:
        user.append("--no-new-privs")
    variables = [f"{name}={value}" for name, value in environment.items()]
    lines.append(f"exec chroot . {shlex.join([*user, 'env', '-i', *variables, *command])}")
    return "\n".join(lines) + "\n"


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced where there is such a variable."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def quantity(text: str) -> int:
    """Bytes of a quantity such as ``5Gi``."""
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    assert match, text
    return int(match[1]) * (_UNITS[match[2]] if match[2] else 1)
