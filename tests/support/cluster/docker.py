"""A ``docker run`` line, as the pod that comes to the same."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DockerRun:
    """What a line asks for.

    Attributes:
        image: its name.
        memory: the container's limit, in Docker's units; ``None``: none.
        spec: of the pod, whose only container is called ``server``.
    """

    image: str
    memory: str | None
    spec: dict[str, Any]


def parse(line: str) -> DockerRun:
    """The pod of a line of the documentation.

    Raises:
        SystemExit: it has an option that is not understood here.
    """
    parser = argparse.ArgumentParser(prog="docker run", allow_abbrev=False)
    parser.add_argument("--gpus")
    parser.add_argument("--shm-size")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--tmpfs", action="append", default=[])
    parser.add_argument("--memory")
    parser.add_argument("-v", dest="volumes", action="append", default=[])
    parser.add_argument("-e", dest="environment", action="append", default=[])
    parser.add_argument("-p", dest="port", required=True)
    parser.add_argument("image")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    options = parser.parse_args(shlex.split(line.replace("\\\n", " "))[2:])
    assert options.port.endswith(":8080"), line
    # Docker mounts a tmpfs noexec unless the line says exec; an emptyDir is mounted exec.
    assert all(each.endswith(":exec") for each in options.tmpfs), line
    folders = [each.removesuffix(":exec") for each in options.tmpfs]
    volumes = [f"tmpfs-{number}" for number, _ in enumerate(folders)]
    for each in options.volumes:
        name, folder = each.split(":")
        volumes.append(name)
        folders.append(folder)
    server = {
        "name": "server",
        "args": options.args,
        "env": [
            dict(zip(("name", "value"), each.split("=", 1), strict=True))
            for each in options.environment
        ],
        "securityContext": {"readOnlyRootFilesystem": options.read_only},
        "volumeMounts": [
            {"name": name, "mountPath": path} for name, path in zip(volumes, folders, strict=True)
        ],
    }
    spec = {
        "containers": [server],
        "volumes": [{"name": name, "emptyDir": {}} for name in volumes],
    }
    return DockerRun(options.image, options.memory, spec)
