"""Files and mounts that only some processes see.

A mount namespace is kept by a process that ends with this one, and its mounts with it. As root it
is made as it is, otherwise in a user namespace.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_RESOLVER = "hosts: files\n"


@dataclass(frozen=True)
class Namespace:
    """A mount namespace.

    Attributes:
        prefix: what stands before a command to run it there, in this process's directory.
        keeper: the id of the process that keeps it.
    """

    prefix: tuple[str, ...]
    keeper: int

    def run(self, *command: str) -> None:
        """Run a command there.

        Raises:
            AssertionError: with what it printed, when it fails.
        """
        result = subprocess.run([*self.prefix, *command], capture_output=True, text=True)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"

    def seen(self, path: Path) -> Path:
        """The path from here of what has that path there."""
        return Path(f"/proc/{self.keeper}/root{path.resolve()}")


@contextmanager
def mount_namespace() -> Iterator[Namespace]:
    """A mount namespace of its own."""
    as_root = os.geteuid() == 0
    options = ["--mount", "--propagation=private"]
    enter = ["--mount"]
    if not as_root:
        options += ["--user", "--map-root-user"]
        enter += ["--user", "--preserve-credentials"]
    # It says that it is there, and ends when its input does: with this process at the latest.
    keep = ["unshare", *options, "sh", "-c", "echo there && exec cat >/dev/null"]
    with subprocess.Popen(
        keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        assert said == "there\n", f"no mount namespace can be made here: {said}"
        target = f"--target={keeper.pid}"
        yield Namespace(("nsenter", target, *enter, f"--wd={Path.cwd()}", "--"), keeper.pid)
        keeper.stdin.close()


class Names:
    """The host names that processes in a namespace know; there is no other resolver for them."""

    def __init__(self, namespace: Namespace, hosts: Path) -> None:
        self._hosts = hosts
        self.prefix = namespace.prefix
        self._names: dict[str, str] = {"localhost": "127.0.0.1"}
        self._write()

    def add(self, name: str, address: str) -> None:
        self._names[name] = address
        self._write()

    @contextmanager
    def gone(self, name: str) -> Iterator[None]:
        """The name does not resolve: ``getaddrinfo`` fails at once with EAI_NONAME."""
        address = self._names.pop(name)
        self._write()
        try:
            yield
        finally:
            self.add(name, address)

    def _write(self) -> None:
        # In place: the file itself is mounted, not its directory.
        self._hosts.write_text("".join(f"{at} {name}\n" for name, at in self._names.items()))


@contextmanager
def private_names(directory: Path) -> Iterator[Names]:
    """Host names of our own for the commands that :attr:`Names.prefix` starts."""
    hosts, switch = directory / "hosts", directory / "nsswitch.conf"
    switch.write_text(_RESOLVER)
    hosts.touch()
    with mount_namespace() as namespace:
        namespace.run("mount", "--bind", str(hosts), "/etc/hosts")
        namespace.run("mount", "--bind", str(switch), "/etc/nsswitch.conf")
        yield Names(namespace, hosts)
