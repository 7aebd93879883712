"""The reporter of an engine's process (:mod:`kserve_lmcache.metrics.reporter`)."""

from __future__ import annotations

import os
from pathlib import Path

from kserve_lmcache.config.sources import CONFIG_FILE
from kserve_lmcache.metrics.reporter import Reporter


def configuration_file() -> Path | None:
    """The file of LMCache's configuration, which the server has written into its directory.

    ``None`` without a server, as in a test of a connector alone.
    """
    path = os.environ.get(CONFIG_FILE)
    return None if path is None else Path(path)


def _server_directory() -> Path | None:
    path = configuration_file()
    return None if path is None else path.parent


REPORTER = Reporter(_server_directory)
