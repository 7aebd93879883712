"""The project's own options of pytest, which ``tests/README.md`` and ``pytest --help`` list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config.settings import IN_PROCESS, MULTIPROCESS


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as on the command line.
        default: the value that ``make test`` uses; its type is the type of every value.
        help: a sentence without the default.
        choices: the values that are allowed, or nothing where all are.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()


# Where CRDs lie beside some checkouts.
CRDS = "../shared/crds"

OPTIONS = (
    Option("--fuzz-inputs", 10_000, "Inputs that the configuration's fuzzers try."),
    Option("--simulated-runs", 5, "Runs of random requests over the simulated engine."),
    Option("--soak-seconds", 30.0, "Length of the soak test of the remote tier."),
    Option("--conversations", 6, "Random conversations over two replicas."),
    Option(
        "--alone",
        "with-others",
        "Tests with the marker `alone`, others, or both.",
        ("with-others", "no", "only"),
    ),
    Option(
        "--mode",
        IN_PROCESS,
        "Setting `mode` of the servers in tests/e2e that set none.",
        (IN_PROCESS, MULTIPROCESS),
    ),
    Option("--load-delay", 0.0, "Seconds by which servers' loads are delayed at random, at most."),
    Option("--crds", CRDS, "Directories with CRDs for the manifests, with `:` between them."),
    Option("--api-examples", 4, "Requests that schemathesis makes for each operation."),
    Option("--fault-rounds", 3, "Rounds of random errors inside LMCache."),
    Option("--fault-requests", 40, "Requests during each fault of a store; 100 have a p99."),
    Option(
        "--remote-connector",
        "kserve",
        "Connector in the fault table; LMCache's own one is shown, and not checked.",
        ("kserve", "lmcache"),
    ),
    Option("--cluster-kubeconfig", "", "Kubeconfig of a cluster; empty: where kubectl looks."),
    Option("--cluster-image", "", "Image of this package for CPUs that the cluster can pull."),
    Option(
        "--cluster-model",
        "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
        "Model that KServe downloads in the cluster.",
    ),
    Option("--cluster-oci-model", "", "The same model as an image, by oci://."),
    Option("--pictures", Path("build/pictures"), "Directory for pictures of the status page."),
)
_values: dict[str, Any] = {}


def register(parser: pytest.Parser) -> None:
    """Add the options to pytest's."""
    group = parser.getgroup("kserve-lmcache")
    for each in OPTIONS:
        group.addoption(
            each.name,
            type=type(each.default),
            default=each.default,
            choices=each.choices or None,
            help=f"{each.help} Default: %(default)s.",
        )


def read(config: pytest.Config) -> None:
    """Take the values from the command line."""
    _values.update({each.name: config.getoption(each.name) for each in OPTIONS})


def option(name: str) -> Any:
    """The value of an option; test modules may ask when pytest imports them."""
    return _values[name]
