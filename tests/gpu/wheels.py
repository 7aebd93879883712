"""The wheels of the script: what it must be given, in parts, and their installation offline.

python -m tests.gpu.wheels list                  # names and versions; asks no index
python -m tests.gpu.wheels pack --output DIR     # downloads and splits
python -m tests.gpu.wheels install --wheels DIR --environment DIR
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "gpu-test.txt"
PYTHON = "3.12"  # the lock is of this version
MANIFEST = "manifest.json"
# This project, built by the setuptools of the environment.
EDITABLE = ("--no-build-isolation", f"--editable={ROOT}")
STAMP = ".installed"
PART_BYTES = 60_000_000
_PIECE = 1 << 20
# pip compares names of platforms, not versions of glibc: every one up to that of the machine.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
)


class WheelsError(Exception):
    """The wheels are not what the manifest says."""


@dataclass(frozen=True)
class Locked:
    """A line of a lock.

    Attributes:
        name: of the distribution, as in the lock.
        version: the only one allowed.
        hashes: SHA-256 of the files allowed, in hexadecimal.
    """

    name: str
    version: str
    hashes: tuple[str, ...]

    def line(self) -> str:
        """The requirement with its hashes."""
        hashes = "".join(f" --hash=sha256:{each}" for each in self.hashes)
        return f"{self.name}=={self.version}{hashes}\n"


@dataclass(frozen=True)
class Part:
    """A piece of a wheel: a file in one of the folders of a pack."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A wheel and the parts it is split into, in order. A wheel of one part is whole."""

    name: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


def read_lock(text: str) -> list[Locked]:
    """The lines of a lock that apply to Linux on x86-64; the lock has no other markers."""
    found = []
    joined = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, joined.splitlines())):
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", line)
        if match is None:
            raise WheelsError(f"this line of the lock names no version: {line}")
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
        found.append(Locked(match[1], match[2], hashes))
    return found


def wanted(
    locked: Sequence[Locked], installed: str = "", without: Sequence[str] = ()
) -> list[Locked]:
    """What must be brought.

    Args:
        locked: all of the lock.
        installed: output of ``pip freeze`` on the machine. Versions that are there already are
            left out.
        without: patterns of names to leave out.
    """
    there = {
        (_canonical(name), version)
        for name, version in re.findall(r"^([\w.-]+)==(\S+)$", installed, re.MULTILINE)
    }
    return [
        each
        for each in locked
        if (_canonical(each.name), each.version) not in there
        and not any(fnmatch.fnmatch(_canonical(each.name), pattern) for pattern in without)
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split(wheel: Path, directory: Path, part_bytes: int = PART_BYTES) -> Wheel:
    """Split a wheel into parts of at most ``part_bytes`` in a directory. A small one is moved."""
    size, digest = wheel.stat().st_size, sha256(wheel)
    if size <= part_bytes:
        wheel.rename(directory / wheel.name)
        return Wheel(wheel.name, size, digest, (Part(wheel.name, size, digest),))
    parts = []
    with wheel.open("rb") as source:
        for number in range(-(-size // part_bytes)):
            path = directory / f"{wheel.name}.part{number:02}"
            left = part_bytes
            with path.open("wb") as target:
                while left and (piece := source.read(min(_PIECE, left))):
                    target.write(piece)
                    left -= len(piece)
            parts.append(Part(path.name, path.stat().st_size, sha256(path)))
    wheel.unlink()
    return Wheel(wheel.name, size, digest, tuple(parts))


def pack(parts: Iterable[Part], load_bytes: int = PART_BYTES) -> list[list[Part]]:
    """Group parts into loads of at most ``load_bytes``, the largest parts first."""
    loads: list[list[Part]] = []
    room: list[int] = []
    for part in sorted(parts, key=lambda each: (-each.size, each.name)):
        place = next((n for n, left in enumerate(room) if left >= part.size), len(loads))
        if place == len(loads):
            loads.append([])
            room.append(load_bytes)
        loads[place].append(part)
        room[place] -= part.size
    return loads


def write_loads(
    downloaded: Path, output: Path, without: Sequence[str], part_bytes: int = PART_BYTES
) -> list[list[Part]]:
    """Make the folders ``load-01`` … of an output directory from a directory of wheels.

    The first folder has the manifest as well.
    """
    for former in output.glob("load-*"):
        shutil.rmtree(former)
    with tempfile.TemporaryDirectory(dir=output) as name:
        apart = Path(name)
        wheels = [split(each, apart, part_bytes) for each in sorted(downloaded.glob("*.whl"))]
        loads = pack([part for wheel in wheels for part in wheel.parts], part_bytes)
        for number, load in enumerate(loads, start=1):
            folder = output / f"load-{number:02}"
            folder.mkdir()
            for part in load:
                (apart / part.name).rename(folder / part.name)
    manifest = {
        "python": PYTHON,
        "without": list(without),
        "wheels": [asdict(each) for each in wheels],
    }
    (output / "load-01" / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return loads


def join(wheels: Path, target: Path) -> list[str]:
    """Put the wheels of a manifest together, and compare the checksum of every part and wheel.

    Args:
        wheels: directory that has all folders of a pack.
        target: an empty directory for the wheels.

    Returns:
        The names of the wheels.

    Raises:
        WheelsError: parts are missing or damaged. The message names all of them.
    """
    manifest = manifest_of(wheels)
    there = {path.name: path for path in wheels.rglob("*") if path.is_file()}
    problems = []
    for wheel in manifest["wheels"]:
        for part in wheel["parts"]:
            path = there.get(part["name"])
            if path is None:
                problems.append(f"{part['name']} is missing")
            elif path.stat().st_size != part["size"] or sha256(path) != part["sha256"]:
                problems.append(f"{part['name']} is damaged")
    if problems:
        raise WheelsError("; ".join(problems))
    for wheel in manifest["wheels"]:
        whole = target / wheel["name"]
        if len(wheel["parts"]) == 1:
            whole.symlink_to(there[wheel["name"]].resolve())
            continue
        with whole.open("wb") as output:
            for part in wheel["parts"]:
                with there[part["name"]].open("rb") as source:
                    shutil.copyfileobj(source, output, _PIECE)
        if sha256(whole) != wheel["sha256"]:
            raise WheelsError(f"{wheel['name']} is not the sum of its parts")
    return [wheel["name"] for wheel in manifest["wheels"]]


def manifest_of(wheels: Path) -> dict[str, Any]:
    """The manifest of a pack.

    Raises:
        WheelsError: there is none.
    """
    found = sorted(wheels.rglob(MANIFEST))
    if not found:
        raise WheelsError(f"{wheels} has no {MANIFEST}; load-01 of `make gpu-wheels` has it")
    return dict(json.loads(found[0].read_text()))


def download(entries: Sequence[Locked], directory: Path) -> None:
    """Download wheels for Linux on x86-64 from where pip is configured to look."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(each.line() for each in entries)
        file.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--implementation=cp"]
        command += [
            f"--python-version={PYTHON}",
            f"--dest={directory}",
            f"--requirement={file.name}",
        ]
        command += [f"--platform={each}" for each in _PLATFORMS]
        subprocess.run(command, check=True)


def install(wheels: Path, environment: Path) -> str:
    """Make a virtual environment from the parts, with hashes and without an index.

    Packages that were left out come from the Python that runs this. Nothing is done where the
    environment was made from the same parts.

    Returns:
        What was installed, in words.
    """
    manifest = manifest_of(wheels)
    here = ".".join(map(str, sys.version_info[:2]))
    if manifest["python"] != here:
        raise WheelsError(f"the wheels are of Python {manifest['python']}, and this is {here}")
    stamp, digest = environment / STAMP, hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return f"{environment} is as it was installed"
    shutil.rmtree(environment, ignore_errors=True)
    environment.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=environment.parent) as name:
        joined = Path(name)
        names = join(wheels, joined)
        brought = {_canonical(each.split("-")[0]) for each in names}
        lines = [each for each in read_lock(LOCK.read_text()) if _canonical(each.name) in brought]
        if len(lines) != len(names):
            raise WheelsError(f"{len(names)} wheels are there, and {LOCK.name} knows {len(lines)}")
        requirements = joined / "requirements.txt"
        requirements.write_text("".join(each.line() for each in lines))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        if manifest["without"]:
            inherit(environment)
        _pip(
            environment,
            "--require-hashes",
            f"--find-links={joined}",
            f"--requirement={requirements}",
        )
        if EDITABLE:
            _pip(environment, *EDITABLE)
    # On all cores; pip would compile on one.
    packages = [str(path) for path in environment.glob("lib/python*/site-packages")]
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "compileall", "-q", "-j0", *packages], check=False)
    stamp.write_text(digest)
    return f"{len(names)} wheels were installed into {environment}"


def inherit(environment: Path) -> None:
    """Let an environment find the packages of the Python that runs this, behind its own."""
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "machine.pth").write_text(f"{sysconfig.get_path('purelib')}\n")


def _pip(environment: Path, *options: str) -> None:
    command = [sys.executable, "-m", "pip", f"--python={environment / 'bin' / 'python'}"]
    command += ["--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", *options]
    # The machine's own configuration of pip may name an index, or constraints.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    subprocess.run(command, env={**kept, "PIP_CONFIG_FILE": os.devnull}, check=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("list", "pack"):
        command = commands.add_parser(name)
        command.add_argument("--installed", type=Path, help="output of pip freeze on the machine")
        # One argument, which a shell does not take for names of files.
        command.add_argument("--without", default="", metavar="PATTERN,…", help="of names")
        if name == "pack":
            command.add_argument("--output", type=Path, required=True)
    command = commands.add_parser("install")
    command.add_argument("--wheels", type=Path, required=True)
    command.add_argument("--environment", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        if args.command == "install":
            print(install(args.wheels, args.environment))
            return 0
        installed = args.installed.read_text() if args.installed else ""
        locked = read_lock(LOCK.read_text())
        entries = wanted(locked, installed, list(filter(None, args.without.split(","))))
        print(f"# {len(entries)} wheels for CPython {PYTHON}, Linux, x86-64, from {LOCK.name}")
        if args.command == "list":
            print("".join(each.line() for each in entries), end="")
            return 0
        args.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.output) as directory:
            download(entries, Path(directory))
            kept = {each.name for each in entries}
            without = [each.name for each in locked if each.name not in kept]
            loads = write_loads(Path(directory), args.output, without)
        for number, load in enumerate(loads, start=1):
            size = sum(part.size for part in load)
            print(f"load-{number:02}  {size:>10,} bytes  {' '.join(part.name for part in load)}")
    except (WheelsError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
