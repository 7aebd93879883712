from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.config import environment
from kserve_lmcache.errors import UsageError
from tests.support.server import ROOT, engine_environment

PROBE = """\
import os, runpy, sys
from kserve_lmcache.config import environment
try:
    environment.ensure()
except Exception as error:
    print("refused", error)
    sys.exit(0)
print(os.environ["PYTHONHASHSEED"], hash("text"))
"""


def probe(**variables: str) -> str:
    environ = {**engine_environment(), **variables}
    command = [sys.executable, "-c", PROBE]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_start_without_the_seed_executes_itself_once_more() -> None:
    first, second = probe().split(), probe().split()
    assert first == second
    assert first[0] == "0"


def test_a_seed_of_the_user_stays() -> None:
    assert probe(PYTHONHASHSEED="7").split()[0] == "7"


@pytest.mark.parametrize("seed", ["random", "-1", "4294967296", "x"])
def test_a_seed_that_no_replica_could_repeat_is_refused(seed: str) -> None:
    with pytest.raises(UsageError, match="gives every process other cache keys"):
        environment.check_hash_seed({"PYTHONHASHSEED": seed})


def test_a_second_start_that_still_lacks_it_is_refused() -> None:
    assert probe(_KSERVE_LMCACHE_REEXECUTED="1").startswith("refused")


def test_the_entry_point_sets_the_same(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\nenv\n')
    python.chmod(0o755)
    result = subprocess.run(
        [str(ROOT / "entrypoint.sh"), "--model_name=a b", "$HOME *"],
        env={"PATH": os.environ["PATH"], "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments, *lines = result.stdout.splitlines()
    environ = dict(line.split("=", 1) for line in lines)
    assert arguments == "-m kserve_lmcache.cli.command --model_name=a b $HOME *"
    assert {name: environ[name] for name in environment.DEFAULTS} == dict(environment.DEFAULTS)
