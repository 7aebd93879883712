"""Coverage-guided fuzzing of the configuration: ``python -m tests.fuzz.configuration -runs=10000``.

Any file and any variables give a configuration that LMCache accepts, or problems with a source and
a fix. No other exception is raised, and no value is dropped without a note.
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
    """Check what is true of every configuration.

    Args:
        configuration: the result.
        given: the names of the known keys that a source sets.
    """
    for problem in configuration.problems:
        assert problem.message, problem
        assert problem.source, problem
        assert problem.fix, problem
    if configuration.problems:
        return
    assert given <= set(configuration.values), given - set(configuration.values)
    values = configuration.lmcache_values()
    used = effective_values(values)
    for name, value in values.items():
        assert used[name] == value, f"{name}: LMCache makes {used[name]!r} of {value!r}"
    configuration.redacted()


def known_names(variables: dict[str, str]) -> set[str]:
    """The keys that these variables set. Kubernetes sets variables such as ``…_PORT=tcp://…``."""
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
    # Imports vLLM and LMCache now: on a busy machine, the import exceeds the time of one input.
    resolve(Flags(), {}, "cuda", NOWHERE)
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
