"""Coverage-guided fuzzing of the configuration: ``python -m tests.fuzz.configuration -runs=10000``.

Any file and any variables give a configuration that LMCache takes, or problems that say where
and how to fix them; never another exception, and never a value that is silently dropped.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

from kserve_lmcache.compat.lmcache.configuration import effective_values

with atheris.instrument_imports(include=["kserve_lmcache.config", "yaml"]):
    from kserve_lmcache.config import keys
    from kserve_lmcache.config.configuration import Configuration
    from kserve_lmcache.config.resolve import Flags, resolve

NOWHERE = Path("/nonexistent")


def hold(configuration: Configuration, given: set[str]) -> None:
    """What must be true of every configuration.

    Args:
        configuration: the result.
        given: names of the keys that some source gave, known ones only.
    """
    for problem in configuration.problems:
        assert problem.message, problem
        assert problem.source, problem
        assert problem.fix, problem
    if configuration.problems:
        return
    assert given <= set(configuration.values), given - set(configuration.values)
    told = configuration.lmcache_values()
    used = effective_values(told)
    for name, value in told.items():
        assert used[name] == value, f"{name}: LMCache makes {used[name]!r} of {value!r}"
    configuration.redacted()


def known_names(variables: dict[str, str]) -> set[str]:
    """The keys that these variables set, if Kubernetes does not (``…_PORT=tcp://…``)."""
    return {
        keys.variables()[name].name
        for name, text in variables.items()
        if name in keys.variables() and not (name.endswith("_PORT") and "://" in text)
    }


def one_input(data: bytes) -> None:
    """A file's bytes, then variables of a few keys."""
    provider = atheris.FuzzedDataProvider(data)
    names = sorted(keys.variables())
    variables = {}
    for _ in range(provider.ConsumeIntInRange(0, 4)):
        name = names[provider.ConsumeIntInRange(0, len(names) - 1)]
        variables[name] = provider.ConsumeUnicodeNoSurrogates(30).replace("\0", "")
    given = known_names(variables)
    environ: dict[str, str] = dict(variables)
    with tempfile.NamedTemporaryFile() as file:
        file.write(provider.ConsumeBytes(sys.maxsize))
        file.flush()
        environ["LMCACHE_CONFIG_FILE"] = file.name
        hold(resolve(Flags(), environ, "cuda", NOWHERE), given)


def main(arguments: list[str]) -> Any:
    """Run libFuzzer with its own arguments."""
    logging.disable(logging.CRITICAL)
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
