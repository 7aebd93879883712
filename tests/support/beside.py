"""Commands that run beside a server: a stand-in for the server, and what a command takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# As much of a server as other commands see: its directory, its file and its command line.
_SERVER = """\
import os, sys
from kserve_lmcache.cli import examination
from kserve_lmcache.config import metrics_directory, server_file
from kserve_lmcache.config.engine_shape import EngineShape

directory = metrics_directory.make(os.environ)
found = examination.examine_flags(sys.argv[1:])
shape = EngineShape("cpu", 2, 128, 2**20, 512, 4)  # of a large model
shown = found.configuration.shown()
server_file.write(
    directory, server_file.RunningServer(os.getpid(), 8080, "0.1.0", shown, shape)
)
print(directory, flush=True)
sys.stdin.readline()
"""
# A command as the entry point runs it, and what the kernel and Python say of its process. The peak
# is the process's own: ru_maxrss begins with that of the process that started it.
_COMMAND = """\
import json, sys, time
from pathlib import Path
began = time.monotonic()
from kserve_lmcache.cli.main import main
try:
    code = main()
except SystemExit as ended:
    code = ended.code
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
told = {
    "code": code,
    "seconds": time.monotonic() - began,
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "score": int(Path("/proc/self/oom_score_adj").read_text()),
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}
print("\\n" + json.dumps(told))
"""


@dataclass(frozen=True)
class StandIn:
    """A stand-in that lives."""

    pid: int
    directory: Path
    process: subprocess.Popen[str]


@contextmanager
def stand_in(folder: Path, environ: Mapping[str, str], *flags: str) -> Iterator[StandIn]:
    """A stand-in for a server with these flags.

    Args:
        folder: where its program is written.
        environ: its whole environment.
        flags: of ``serve``.
    """
    program = folder / "kserve-lmcache"
    program.write_text(_SERVER)
    process = subprocess.Popen(
        [sys.executable, str(program), *flags],
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        assert directory.is_dir()
        yield StandIn(process.pid, directory, process)
    finally:
        process.communicate("")


@dataclass(frozen=True)
class Done:
    """A command that has ended, and what its process took.

    Attributes:
        output: what it printed.
        errors: what it wrote to the standard error.
        code: its exit code.
        seconds: from its first import to its end.
        peak: the largest memory of its process, in bytes.
        score: how early the kernel ends it when memory runs out.
        modules: the packages that it has imported.
    """

    output: str
    errors: str
    code: int
    seconds: float
    peak: int
    score: int
    modules: Sequence[str]


def command(environ: Mapping[str, str], *arguments: str, prefix: Sequence[str] = ()) -> Done:
    """Run a command of ``kserve-lmcache`` in a process of its own.

    Args:
        environ: its whole environment.
        arguments: the command and its flags.
        prefix: what stands before the command, for example for a memory limit.
    """
    result = subprocess.run(
        [*prefix, sys.executable, "-c", _COMMAND, *arguments],
        env=dict(environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{result.returncode}\n{result.stdout}\n{result.stderr}"
    output, _, told = result.stdout.rstrip("\n").rpartition("\n")
    return Done(output, result.stderr, **json.loads(told))
