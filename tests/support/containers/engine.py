"""The container engine of this machine, or one that the tests start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

from tests.support.processes import Process

# Debian's own commands are among the administrator's.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin"])
_INSTALL = "Install Docker; on Debian: apt-get install docker.io iptables"
START_SECONDS = 60


@dataclass(frozen=True)
class Engine:
    """A container engine that answers.

    Attributes:
        command: the command-line client, which can build by BuildKit.
        environ: of the client: where the engine is.
    """

    command: str
    environ: Mapping[str, str] = field(default_factory=dict)

    def docker(
        self, *words: str, check: bool = True, seconds: float = 120, cwd: Path | None = None
    ) -> CompletedProcess[str]:
        """Run a command of the client.

        Raises:
            AssertionError: it failed, with what it printed.
        """
        result = subprocess.run(
            [self.command, *words],
            env={**os.environ, **self.environ, "DOCKER_BUILDKIT": "1"},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        said = result.stdout[-4000:] + result.stderr[-8000:]
        assert not check or result.returncode == 0, f"docker {' '.join(words)}: {said}"
        return result

    def answers(self) -> bool:
        return self.docker("version", check=False).returncode == 0


@contextmanager
def running_engine(directory: Path) -> Iterator[Engine]:
    """The engine that answers, else one of the tests' own (root), which ends with them.

    Args:
        directory: for the socket and the data of an engine of the tests' own.

    Raises:
        AssertionError: there is none, and none can be started.
    """
    command = _client()
    engine = Engine(command)
    if engine.answers():
        yield engine
        return
    daemon = shutil.which("dockerd", path=_PATH)
    assert daemon, f"no container engine answers, and there is no dockerd. {_INSTALL}."
    assert os.geteuid() == 0, "no container engine answers, and only root can start one"
    socket = directory / "docker.sock"
    assert len(str(socket)) < 100, f"{socket} is too long for a socket"
    with _forwarding_kept():
        process = Process(
            [
                daemon,
                f"--host=unix://{socket}",
                f"--data-root={directory / 'data'}",
                f"--exec-root={directory / 'exec'}",
                f"--pidfile={directory / 'dockerd.pid'}",
            ],
            directory / "dockerd.log",
            {**os.environ, "PATH": _PATH},
        )
        engine = Engine(command, {"DOCKER_HOST": f"unix://{socket}"})
        try:
            process.wait_until(engine.answers, START_SECONDS)
            yield engine
        finally:
            process.stop()


def _client() -> str:
    """A client that builds by BuildKit: since version 23 only with the plug-in buildx."""
    seen = []
    for folder in _PATH.split(os.pathsep):
        command = str(Path(folder, "docker"))
        if not os.access(command, os.X_OK):
            continue
        version = _output([command, "--version"])
        found = re.search(r"version (\d+)\.", version)
        if found and (int(found[1]) < 23 or "buildx" in _output([command, "buildx", "version"])):
            return command
        seen.append(f"{command} ({version.strip()}) has no buildx")
    raise AssertionError(f"no docker command can build. {'; '.join(seen)}. {_INSTALL}.")


def _output(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else ""


@contextmanager
def _forwarding_kept() -> Iterator[None]:
    """This machine's FORWARD policy is afterwards what it was; an engine sets it to DROP."""
    tables = shutil.which("iptables", path=_PATH)
    assert tables, f"dockerd needs iptables. {_INSTALL}."
    policy = re.search(r"-P FORWARD (\w+)", _output([tables, "--list-rules", "FORWARD"]))
    try:
        yield
    finally:
        if policy:
            subprocess.run([tables, "--policy", "FORWARD", policy[1]], check=True)
