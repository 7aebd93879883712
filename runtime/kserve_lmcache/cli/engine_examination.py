"""What ``config --engine`` and ``doctor --engine`` find with vLLM, as ``serve`` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.cli.examination import FIX_FLAGS, Examination
from kserve_lmcache.config.completion import complete
from kserve_lmcache.config.configuration import Shown
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.doctor.check import failure
from kserve_lmcache.engine.arguments import device
from kserve_lmcache.engine.plan import examine, resolve_configuration
from kserve_lmcache.engine.validation import check_arguments
from kserve_lmcache.errors import KServeLMCacheError
from kserve_lmcache.redaction import redact_text

_FIX_MODEL = "Serve another model, or this one with --offload=off."


def shown_of_flags(flags: Sequence[str]) -> Shown:
    """The configuration of a server with these flags.

    Raises:
        ConfigurationError: the configuration has problems.
        UnsupportedModelError: the model cannot be offloaded.
        IdentityError: the model is not loaded from its files.
        UsageError: a flag is unknown or cannot be used.
    """
    args = parse_arguments(flags)
    check_arguments(args, os.environ)
    configuration = resolve_configuration(args, os.environ)
    shape, _ = examine(args, configuration, os.environ)
    configuration.raise_problems()
    if shape:
        size = configuration.get("max_local_cpu_size") * 2**30
        configuration.notes.append(shape.capacity_note(size))
    return configuration.shown()


def examine_flags(flags: Sequence[str]) -> Examination:
    """Everything that the doctor looks at, of a server with these flags.

    Raises:
        UsageError: a flag is unknown, or its value is invalid.
    """
    args = parse_arguments(flags)
    found = Examination(args, resolve_configuration(args, os.environ))
    try:
        check_arguments(args, os.environ)
    except KServeLMCacheError as error:
        found.findings.append(failure(redact_text(str(error)), FIX_FLAGS, name="arguments"))
    # A model of the hub is not asked for: it has a check of its own.
    name = args.model_id or args.model_tag or args.model
    is_here = not name or Path(name).exists()
    try:
        found.shape, found.remote = examine(args, found.configuration, os.environ, is_here)
    except KServeLMCacheError as error:
        found.findings.append(failure(redact_text(str(error)), _FIX_MODEL, name="model"))
        found.remote = complete(found.configuration, None, Needs(device()))
    return found
