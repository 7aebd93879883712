"""``kserve-lmcache cache-server``: a cache server of its own, for the engines of a node."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kserve_lmcache import logs, redaction
from kserve_lmcache.cache_server import process
from kserve_lmcache.cli.parser import Parser
from kserve_lmcache.config import completion, engine_file
from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.flags import add_setting_flags, flags_of
from kserve_lmcache.config.memory_budget import GIB, CacheServer, Needs
from kserve_lmcache.config.resolve import resolve
from kserve_lmcache.config.settings import MULTIPROCESS, SETTINGS
from kserve_lmcache.errors import UsageError

logger = logging.getLogger(__name__)

_LOCK = "lock"


def run(argv: Sequence[str]) -> int:
    """Serve until a signal comes; returns the exit code.

    Raises:
        ConfigurationError: the configuration has problems.
        UsageError: the directory cannot be used, or has another server.
    """
    args = build_parser().parse_args(argv)
    args.setting_mode = MULTIPROCESS
    directory = Path(args.directory).absolute()
    configuration = resolve(flags_of(args), os.environ, "cpu")
    remote = completion.complete(configuration, None, Needs("cpu", cache_server=CacheServer.OWN))
    configuration.raise_problems()
    logs.configure(os.environ)
    size = int(configuration.get("max_local_cpu_size") * GIB)
    with _owned(directory):
        file = engine_file.replace(directory, configuration, remote)
        redaction.redact_logs(engine_file.secrets_in(file))
        logger.info("A cache server of %.2f GiB: %s", size / GIB, _shown(configuration))
        return process.run(process.Settings(file, size))


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's flags."""
    parser = Parser(
        prog="kserve-lmcache cache-server",
        description="Keeps KV cache in shared memory for all servers of this machine that have "
        "mode=multiprocess and the same cache_server_directory. Takes the settings of the cache: "
        "flags, variables and the YAML file as serve does.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--directory",
        required=True,
        help="directory that the servers share, in which this one announces itself; its user, and "
        "nobody else, may use it",
    )
    add_setting_flags(
        parser, [each for each in SETTINGS if each.name.startswith(("remote_", "log_"))]
    )
    return parser


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    """The directory as this process's own.

    Raises:
        UsageError: it cannot be used, or it is another server's.
    """
    try:
        directory.mkdir(0o700, parents=True, exist_ok=True)
        lock = (directory / _LOCK).open("wb")
    except OSError as error:
        raise UsageError(
            f"--directory {directory} cannot be used: {error.strerror}. Name one that this user "
            "may write"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"--directory {directory} has another cache server. Stop it, or name another "
                "directory"
            ) from None
        yield


def _shown(configuration: Configuration) -> str:
    values = configuration.redacted()
    names = ("chunk_size", "local_disk", "remote_url")
    return ", ".join(
        f"{name} = {values[name].value} ({values[name].source})" for name in names if name in values
    )
