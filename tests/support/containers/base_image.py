"""The image that the build starts from, made here where no registry answers.

Debian's smallest system by debootstrap, and in ``/usr/local`` the Python that runs the tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.cluster.images import ROOT
from tests.support.containers.engine import Engine

LOCAL = "kserve-lmcache-tests-base:local"
# Kept between runs: it takes a minute. `make clean` removes it.
_ARCHIVE = ROOT / ".cache" / f"container-base-{sys.version_info.major}.{sys.version_info.minor}.tar"
_SUITE = "bookworm"
# What Python's modules link to.
_PACKAGES = (
    *("ca-certificates", "libssl3", "libffi8", "libsqlite3-0", "zlib1g", "libbz2-1.0"),
    *("liblzma5", "libreadline8", "libncursesw6", "libexpat1", "libuuid1"),
)
_PULL_SECONDS = 120
# Of Python's tree: what tests and other packages bring.
_LEFT_OUT = ("site-packages", "__pycache__", "test", "idlelib", "config-*", "*.a")


def base_image(engine: Engine) -> str:
    """The Dockerfile's own base where a registry has it, else the one made here."""
    (own,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    with contextlib.suppress(subprocess.TimeoutExpired):
        if engine.docker("pull", own, check=False, seconds=_PULL_SECONDS).returncode == 0:
            return str(own)
    if engine.docker("image", "inspect", LOCAL, check=False).returncode:
        if not _ARCHIVE.exists():
            _make(_ARCHIVE)
        change = (
            "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8"
        )
        engine.docker("import", "--change", change, str(_ARCHIVE), LOCAL)
    return LOCAL


def _make(archive: Path) -> None:
    assert shutil.which("debootstrap"), (
        "no registry has the base image, and there is no debootstrap to make one: "
        "apt-get install debootstrap"
    )
    assert os.geteuid() == 0, "debootstrap needs root"
    archive.parent.mkdir(exist_ok=True)
    root = archive.with_suffix(".root")
    shutil.rmtree(root, ignore_errors=True)
    packages = f"--include={','.join(_PACKAGES)}"
    try:
        _run("debootstrap", "--variant=minbase", packages, _SUITE, str(root))
        _copy_python(root)
        for name in ("apt/lists", "apt/archives"):
            for parent in ("var/lib", "var/cache"):
                shutil.rmtree(root / parent / name, ignore_errors=True)
        half = archive.with_suffix(".half")
        _run("tar", "--create", "--numeric-owner", f"--file={half}", f"--directory={root}", ".")
        half.replace(archive)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _copy_python(root: Path) -> None:
    base, local = Path(sys.base_prefix), root / "usr/local"
    ignore = shutil.ignore_patterns(*_LEFT_OUT)
    for folder in ("bin", "lib", "include"):
        shutil.copytree(
            base / folder, local / folder, ignore=ignore, symlinks=True, dirs_exist_ok=True
        )
    for script in (local / "bin").iterdir():  # they name this machine's Python
        if not script.is_symlink() and script.read_bytes()[:2] == b"#!":
            script.unlink()
    # The authorities that this machine trusts, which may be those of a mirror.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    _run("chroot", str(root), "ldconfig")
    _run("chroot", str(root), "python3", "-m", "ensurepip", "--default-pip")


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr[-4000:]}"
