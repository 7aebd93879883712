"""What the documentation names exists: targets, paths, commands, flags, variables, metrics."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kserve_lmcache.cli import arguments, bench, cache, cache_server, config, demo_model, doctor
from kserve_lmcache.cli.main import COMMANDS
from kserve_lmcache.config import keys
from kserve_lmcache.config.environment import DEFAULTS as ENVIRONMENT
from kserve_lmcache.metrics.table import PREFIX, TABLE
from tests.packaging.documents import DOCS, blocks, lines, name, pages, rows, spans
from tests.packaging.manifests import ROOT
from tests.support.options import OPTIONS

each_page = pytest.mark.parametrize("page", pages(), ids=name)

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(" ".join(re.findall(r"^([a-z][a-z -]*):", MAKEFILE, re.MULTILINE)).split())
# Made by a build, or by whoever follows the page.
OUTPUTS = {"build/docs"}
# What a page writes for "any".
PLACEHOLDERS = {"LMCACHE_KEY"}
# KServe's guide has it, and nothing reads it any more.
FORMER = {"LMCACHE_USE_EXPERIMENTAL"}
# Of other programs, named in a sentence: Docker's, and those of `vllm bench serve`.
FOREIGN_FLAGS = {"--tmpfs", "--dataset-name", "--goodput", "--request-rate", "--tokenizer"}
# Of the command without another command.
OWN_FLAGS = {"--version"}

Parser = Callable[[], argparse.ArgumentParser]
PARSERS: Mapping[str, tuple[Parser, ...]] = {
    "serve": (arguments.build_parser,),
    "config": (config.build_parser, arguments.build_parser),
    "doctor": (doctor.build_parser, arguments.build_parser),
    "cache": (cache.build_parser,),
    "cache-server": (cache_server.build_parser,),
    "bench": (bench.build_parser,),
    "demo-model": (demo_model.build_parser,),
}


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """Every spelling of the command's flags."""
    return frozenset(
        option for parser in PARSERS[command] for option in parser()._option_string_actions
    )


def commands(text: str) -> Iterator[list[str]]:
    """The words behind the command ``kserve-lmcache`` of a line, without a comment."""
    match = re.search(r"(?:^(?:[A-Z_]+=\S+ )*| -- )kserve-lmcache(?=\s|$)(.*)", text)
    if match is not None:
        yield shlex.split(match[1].replace("…", ""), comments=True)


@each_page
def test_every_make_target_and_its_variables_exist(page: Path) -> None:
    for line in lines(page):
        match = re.match(r"(?:[A-Z_]+=\S+ )*make((?: [a-z][a-z-]*)*)((?: [A-Z_]+=\S+)*)", line)
        if match is None:
            continue
        assert set(match[1].split()) <= TARGETS, line
        for variable in re.findall(r"([A-Z_]+)=", match[2]):
            assert f"$({variable})" in MAKEFILE, line


def test_every_command_has_a_parser_here() -> None:
    assert set(PARSERS) == set(COMMANDS)


def test_targets_are_found() -> None:
    named = {word for page in pages() for line in lines(page) for word in _targets(line)}
    assert {"serve", "test", "lint", "docs", "reference", "lock"} <= named


def _targets(line: str) -> list[str]:
    match = re.search(r"\bmake((?: [a-z][a-z-]*)+)", line)
    return match[1].split() if match else []


@each_page
def test_every_path_of_the_repository_exists(page: Path) -> None:
    assert [path for path in paths(page) if not (ROOT / path).exists()] == []


def test_paths_are_found() -> None:
    assert len({path for page in pages() for path in paths(page)}) > 60


LEFT_OUT = (".cache", ".git", ".venv", ".models", "build")


def paths(page: Path) -> list[str]:
    """What looks like a file or folder below the root."""
    top = "|".join(
        re.escape(entry.name)
        for entry in ROOT.iterdir()
        if entry.name not in LEFT_OUT and not entry.is_symlink()
    )
    found = []
    for text in (*spans(page), *blocks(page)):
        found += re.findall(rf"(?<![\w./:-])(?:\./)?((?:{top})(?:/[\w./-]*\w|/)?)(?![\w-])", text)
    return [path for path in found if "." in path or "/" in path]


def test_every_folder_and_module_of_the_design_exists() -> None:
    package = ROOT / "runtime" / "kserve_lmcache"
    table = rows(DOCS / "design" / "architecture.md", "Folder of `runtime/kserve_lmcache/`")
    named = {part for row in table for part in re.findall(r"`([\w.]+)`", row[0])}
    tops = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    tops |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert named == tops
    drawn = re.findall(
        r'class="file"[^>]*>([^<]+)<', (DOCS / "assets" / "request-road.svg").read_text()
    )
    assert len(drawn) > 8
    files = [file for text in drawn for file in text.split(", ")]
    assert [each for each in files if not [*package.rglob(each.rstrip("/"))]] == []


@each_page
def test_every_command_and_its_flags_exist(page: Path) -> None:
    for line in lines(page):
        for words in commands(line):
            command = words.pop(0) if words and not words[0].startswith("-") else "serve"
            if command == "COMMAND":
                continue
            assert command in PARSERS, line
            # Behind -- are the flags of the servers that a benchmark starts.
            end = words.index("--") if "--" in words else len(words)
            for word in words[:end]:
                if word.startswith("--") and " " not in word:
                    assert word.split("=")[0] in flags_of(command) | {"--help"}, line
            for word in words[end + 1 :]:
                if word.startswith("--"):
                    assert word.split("=")[0] in flags_of("serve"), line


@each_page
def test_every_flag_in_a_sentence_or_a_manifest_exists(page: Path) -> None:
    known = {flag for command in PARSERS for flag in flags_of(command)}
    known |= FOREIGN_FLAGS | OWN_FLAGS
    known |= {each.name for each in OPTIONS}
    named = [span.split("=")[0].split()[0] for span in spans(page) if span[:2] == "--" != span]
    for block in blocks(page, "yaml"):
        named += re.findall(r"^\s*- (--[\w-]+)", block, re.MULTILINE)
    assert [flag for flag in named if flag not in known] == []


@each_page
def test_every_variable_of_the_configuration_exists(page: Path) -> None:
    known = {*keys.variables(), *ENVIRONMENT, "LMCACHE_CONFIG_FILE"}
    named = set(re.findall(r"\b((?:KSERVE_)?LMCACHE_[A-Z_]*[A-Z])\b(?!_)", page.read_text()))
    assert named - known - PLACEHOLDERS - FORMER == set()


@each_page
def test_every_option_and_marker_of_pytest_exists(page: Path) -> None:
    known = {each.name for each in OPTIONS}
    markers = set(re.findall(r'^    "(\w+): ', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for line in lines(page):
        if re.search(r"\bpytest -|/pytest\b|PYTEST_ARGS=", line) is None:
            continue
        assert re.match(r"\.venv/bin/pytest|pytest|make ", line), line  # no variable steers a test
        assert set(re.findall(r" (--[a-z-]+)", line)) <= known, line
        for expression in re.findall(r"-m '([^']*)'", line):
            assert set(re.findall(r"\w+", expression)) - {"not", "or", "and"} <= markers, line


@each_page
def test_every_metric_exists(page: Path) -> None:
    known = {PREFIX + row.name for row in TABLE}
    named = set(re.findall(rf"{PREFIX}\w+", page.read_text()))
    assert named - known == set()


@each_page
def test_every_python_module_of_a_command_exists(page: Path) -> None:
    for line in lines(page):
        for module in re.findall(r"python -m ([\w.]+)", line):
            if module.split(".")[0] in ("benchmarks", "tests"):
                assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), line
