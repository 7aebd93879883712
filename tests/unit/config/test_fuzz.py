"""Arbitrary files and variables: a configuration, or our problems; nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve_lmcache.config import keys
from tests.fuzz.configuration import hold, known_names
from tests.support.configuration import resolved
from tests.support.options import option
from tests.support.processes import Process
from tests.support.server import ROOT

INPUTS = option("--fuzz-inputs")
pytestmark = pytest.mark.timeout(120 + INPUTS / 10)

any_text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
likely_text = st.one_of(
    any_text,
    st.sampled_from(["true", "no", "", "0", "-1", "2Gi", "512Mi", "nan", "inf", "[1]", "{}", '""']),
    st.sampled_from(
        [
            "redis://a:1",
            "tcp://10.0.0.1:1",
            "lm://a:1",
            "://",
            "redis://[",
            "fs:///a",
            "a,b",
            "1,2",
            "naive",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
)
names = st.sampled_from(sorted(keys.variables()))
unknown = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", max_size=12).map(lambda end: f"LMCACHE_{end}")
variables = st.dictionaries(st.one_of(names, names, names, unknown), likely_text, max_size=6)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), likely_text, st.dates(), st.binary()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
)
mappings = st.dictionaries(
    st.one_of(st.sampled_from(sorted(keys.table())), any_text), values, max_size=6
)


@pytest.fixture(scope="module", autouse=True)
def coverage_guided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The fuzzer, which runs beside the other tests here."""
    directory = tmp_path_factory.mktemp("fuzzer")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tests.fuzz.configuration", f"-runs={INPUTS}", "-max_len=400"]
    fuzzer = Process(
        [*command, f"-artifact_prefix={directory}/", "-timeout=20"],
        directory / "fuzzer.log",
        {**os.environ, "PYTHONPATH": path},
    )
    yield fuzzer
    fuzzer.stop()


@settings(
    max_examples=INPUTS // 4, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(environ=variables, mapping=mappings)
def test_any_variables_and_any_mapping(
    environ: dict[str, str], mapping: dict[str, Any], tmp_path_factory: Any
) -> None:
    file = yaml.safe_dump(mapping)
    configuration = resolved(directory(tmp_path_factory), file, **environ)
    hold(configuration, known_names(environ) | (set(mapping) & set(keys.table())))


@settings(max_examples=INPUTS // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=200))
def test_any_text_for_a_file(text: str, tmp_path_factory: Any) -> None:
    path = directory(tmp_path_factory) / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    hold(resolved(path.parent, LMCACHE_CONFIG_FILE=str(path)), set())


def directory(factory: Any) -> Path:
    base: Path = factory.getbasetemp()
    return base


def test_coverage_guided(coverage_guided: Process) -> None:
    assert coverage_guided.wait(INPUTS / 10) == 0, coverage_guided.tail()
    assert f"Done {INPUTS} runs" in coverage_guided.output()
