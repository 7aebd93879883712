"""Resolves a configuration from texts, as the server would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kserve_lmcache.config.configuration import Configuration
from kserve_lmcache.config.resolve import Flags, resolve

NOWHERE = Path("/nonexistent/lmcache_config.yaml")


def resolved(
    tmp_path: Path,
    file: str | None = None,
    flags: Sequence[str] = (),
    own: dict[str, str | None] | None = None,
    connector: dict[str, Any] | None = None,
    device: str = "cuda",
    offloading: dict[str, Any] | None = None,
    **environ: str,
) -> Configuration:
    """From a file's text, ``--lmcache`` assignments, our flags, KServe's field, and variables."""
    if file is not None:
        path = tmp_path / "lmcache.yaml"
        path.write_text(file, "utf-8")
        environ["LMCACHE_CONFIG_FILE"] = str(path)
    given = Flags(own or {}, flags, connector or {}, offloading)
    return resolve(given, environ, device, NOWHERE)


def problems(tmp_path: Path, *arguments: Any, **keywords: Any) -> list[str]:
    """Every mistake, without the test's own directory."""
    found = resolved(tmp_path, *arguments, **keywords).problems
    return [str(problem).replace(str(tmp_path), "") for problem in found]
