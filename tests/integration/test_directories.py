"""Directories that cannot be used, on real mounts: the server and the doctor say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.namespaces import mount_namespace
from tests.support.server import ROOT

MIB = 1 << 20
USER = 4242
COMMAND = (sys.executable, "-m", "kserve_lmcache")
ONE_PROBLEM = "kserve-lmcache: error: 1 problem with the directories that the server writes to:"


@dataclass(frozen=True)
class Place:
    """A mounted directory, for the commands behind a prefix."""

    path: Path
    prefix: Sequence[str]

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command whose home and temporary files are there."""
        # torch sets the variable of its cache in a process that imports it, such as this one.
        inherited = {
            name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ
        }
        variables = {"HOME": str(self.path), "TMPDIR": str(self.path), **environ}
        return subprocess.run(
            [*self.prefix, *command],
            env={**inherited, **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )


# Each with the options of its mount, and the user of the command.
MOUNTS = {
    "noexec": ("noexec,mode=1777", 0),
    "read-only": ("ro", 0),
    "small": (f"mode=1777,size={MIB}", 0),
    "another user's": ("mode=755", USER),
    "usable": ("mode=1777", 0),
}


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    options, user = MOUNTS[request.param]
    path = Path("/mnt")  # every user may search its parents
    with mount_namespace() as namespace:
        namespace.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path))
        as_user = [f"--reuid={user}", "--clear-groups"] if user else []
        prefix = [*namespace.prefix, *(["setpriv", *as_user] if user else [])]
        yield Place(path, prefix)


def mounted(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", names, ids=lambda name: name, indirect=True)


@pytest.mark.parametrize(
    ("place", "evidence", "fix"),
    [
        ("noexec", "does not allow the execution of files", "--tmpfs {place}:exec"),
        ("read-only", "cannot be written: Read-only file system", "an emptyDir"),
        ("small", "is full: 1 MiB are free, 16 MiB are needed", "mount a larger volume"),
    ],
    ids=lambda value: value if value in MOUNTS else "",
    indirect=["place"],
)
def test_the_doctor_names_the_place_and_the_correction(
    place: Place, evidence: str, fix: str
) -> None:
    result = place.run(*COMMAND, "doctor", "--json")
    findings = [
        each for each in json.loads(result.stdout)["findings"] if each["name"] == "directories"
    ]
    assert findings, result.stdout + result.stderr
    assert {each["status"] for each in findings} == {"failure"}
    assert findings[0]["evidence"].startswith(f"{place.path} {evidence}")
    assert fix.format(place=place.path) in findings[0]["fix"]
    assert result.returncode == 1


@mounted("usable")
def test_the_doctor_finds_nothing_in_a_usable_directory(place: Place) -> None:
    result = place.run(*COMMAND, "doctor", "--json")
    (finding,) = (
        each for each in json.loads(result.stdout)["findings"] if each["name"] == "directories"
    )
    assert (finding["status"], finding["fix"]) == ("ok", ""), finding
    assert str(place.path) in finding["evidence"]


@mounted("read-only", "small")
@pytest.mark.parametrize("entry", [("./entrypoint.sh",), COMMAND], ids=["image", "command"])
def test_the_server_says_so_before_it_imports_anything(place: Place, entry: Sequence[str]) -> None:
    result = place.run(*entry, "--model_id=none", PYTHON=sys.executable)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{ONE_PROBLEM} TMPDIR: {place.path} ")
    assert "(needed for temporary files). " in line


@mounted("noexec")
def test_the_server_refuses_what_its_compiled_code_could_not_be_loaded_from(place: Place) -> None:
    result = place.run(*COMMAND, "--model_id=none", "--model_name=none")
    assert result.returncode == 1, result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith(ONE_PROBLEM)
    for purpose in ("vLLM's cache", "torch's compiled code", "Triton's compiled code"):
        assert purpose in line
    assert f"--tmpfs {place.path}:exec), or set VLLM_CACHE_ROOT, " in line


@pytest.mark.parametrize("below", ["", "searchable/", "private/"])
@mounted("another user's")
def test_a_user_who_may_not_write_there(place: Place, below: str) -> None:
    as_root = place.prefix[: place.prefix.index("setpriv")]
    subprocess.run([*as_root, "install", "-d", "-m700", f"{place.path}/private"], check=True)
    probe = (
        "import os; from kserve_lmcache.config.directories import check, of_server, vllm\n"
        "vllm.least_shared_memory = lambda environ: 0  # the system's Python has no vLLM\n"
        "try: check(of_server(os.environ, compiles=True))\n"
        "except Exception as error: print(error)"
    )
    python = ("/usr/bin/env", "python3", "-c", probe)
    home = f"{place.path}/{below}home"
    result = place.run(*python, HOME=home, TMPDIR="/tmp", PYTHONPATH=str(ROOT / "runtime"))  # noqa: S108
    assert " cannot be written: Permission denied (needed for vLLM's cache" in result.stdout
    assert "set VLLM_CACHE_ROOT" in result.stdout
