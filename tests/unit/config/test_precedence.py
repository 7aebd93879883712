"""Flags beat the file, the file beats variables, variables beat defaults: pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.config.resolve import Flags, resolve
from tests.support.configuration import NOWHERE, resolved

# A key of each shape: as --lmcache and a variable write it, as YAML writes it, and its value.
SHAPES: dict[str, tuple[str, list[tuple[str, str, Any]]]] = {
    "scalar": ("chunk_size", [("128", "128", 128), ("64", "64", 64), ("32", "32", 32)]),
    "list": (
        "lmcache_worker_ports",
        [("1,2", "[1, 2]", [1, 2]), ("3", "[3]", [3]), ("4,5", "[4, 5]", [4, 5])],
    ),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)


@each_shape
def test_a_variable_beats_the_default(tmp_path: Path, shape: str) -> None:
    key, [(text, _, value), *_] = SHAPES[shape]
    configuration = resolved(tmp_path, **{f"LMCACHE_{key.upper()}": text})
    assert configuration.get(key) == value
    assert configuration.source(key) == f"LMCACHE_{key.upper()}"
    assert (configuration.notes, configuration.problems) == ([], [])


@each_shape
def test_the_file_beats_a_variable_and_says_so(tmp_path: Path, shape: str) -> None:
    key, [(text, _, _), (_, yaml, value), *_] = SHAPES[shape]
    variable = f"LMCACHE_{key.upper()}"
    configuration = resolved(tmp_path, f"local_cpu: true\n{key}: {yaml}\n", **{variable: text})
    assert configuration.get(key) == value
    assert configuration.source(key) == f"{tmp_path}/lmcache.yaml:2"
    assert configuration.notes == [f"{variable} is not used: {tmp_path}/lmcache.yaml:2 sets {key}"]


@each_shape
def test_a_flag_beats_the_file_and_says_so(tmp_path: Path, shape: str) -> None:
    key, [(_, yaml, _), (text, _, value), *_] = SHAPES[shape]
    configuration = resolved(tmp_path, f"{key}: {yaml}\n", [f"{key}={text}"])
    assert configuration.get(key) == value
    assert configuration.source(key) == f"--lmcache {key}"
    assert configuration.notes == [
        f"{tmp_path}/lmcache.yaml:1 is not used: --lmcache {key} sets {key}"
    ]


@each_shape
def test_a_flag_beats_a_variable_and_all_three_together(tmp_path: Path, shape: str) -> None:
    key, [(text, _, _), (_, yaml, _), (flag, _, value)] = SHAPES[shape]
    variable = {f"LMCACHE_{key.upper()}": text}
    assert resolved(tmp_path, None, [f"{key}={flag}"], **variable).get(key) == value
    configuration = resolved(tmp_path, f"{key}: {yaml}\n", [f"{key}={flag}"], **variable)
    assert configuration.get(key) == value
    assert len(configuration.notes) == 2


def test_extra_config_merges_key_by_key_in_the_same_order(tmp_path: Path) -> None:
    configuration = resolved(
        tmp_path,
        "extra_config:\n  a: file\n  b: file\n  c: file\n",
        ['extra_config={"a": "flag"}'],
        LMCACHE_EXTRA_CONFIG='{"a": "variable", "b": "variable", "d": "variable"}',
    )
    assert configuration.get("extra_config") == {
        "a": "flag",
        "b": "file",
        "c": "file",
        "d": "variable",
    }
    file = f"{tmp_path}/lmcache.yaml:1"
    assert configuration.source("extra_config") == (
        f"--lmcache extra_config + {file} + LMCACHE_EXTRA_CONFIG"
    )
    assert configuration.notes == [
        f"a of {file} is not used: --lmcache extra_config sets a",
        "a of LMCACHE_EXTRA_CONFIG is not used: --lmcache extra_config sets a",
        f"b of LMCACHE_EXTRA_CONFIG is not used: {file} sets b",
    ]


@pytest.mark.parametrize("sources", [("file", "variable"), ("flag", "file"), ("flag", "variable")])
def test_extra_config_of_each_pair(tmp_path: Path, sources: tuple[str, str]) -> None:
    given = {
        "flag": {"flags": ['extra_config={"a": "flag", "flag": 1}']},
        "file": {"file": "extra_config: {a: file, file: 1}"},
        "variable": {"LMCACHE_EXTRA_CONFIG": '{"a": "variable", "variable": 1}'},
    }
    strong, weak = sources
    configuration = resolved(tmp_path, **{**given[strong], **given[weak]})
    assert configuration.get("extra_config") == {"a": strong, strong: 1, weak: 1}


def test_our_own_settings_take_the_same_road(tmp_path: Path) -> None:
    variable = {"KSERVE_LMCACHE_OFFLOAD_REQUIRED": "no"}
    assert resolved(tmp_path).get("offload_required") is True
    assert resolved(tmp_path, **variable).get("offload_required") is False
    assert resolved(tmp_path, "offload_required: true", **variable).get("offload_required") is True
    flag = {"offload_required": "off"}
    configuration = resolved(tmp_path, "offload_required: true", own=flag)
    assert configuration.get("offload_required") is False
    assert configuration.source("offload_required") == "--offload-required"


def test_the_connectors_extra_config_is_a_flag(tmp_path: Path) -> None:
    connector = {"lmcache.chunk_size": 64, "discard_partial_chunks": True}
    configuration = resolved(tmp_path, "chunk_size: 32", connector=connector)
    assert configuration.get("chunk_size") == 64
    assert configuration.source("chunk_size") == "--kv-transfer-config lmcache.chunk_size"


def test_two_flags_that_contradict_each_other(tmp_path: Path) -> None:
    configuration = resolved(
        tmp_path, flags=["chunk_size=32"], connector={"lmcache.chunk_size": 64}
    )
    (problem,) = configuration.problems
    assert str(problem) == (
        "--kv-transfer-config lmcache.chunk_size: chunk_size contradicts --lmcache chunk_size. "
        "Keep one of them."
    )
    same = resolved(tmp_path, flags=["chunk_size=64"], connector={"lmcache.chunk_size": 64})
    assert same.problems == []


def test_the_mounted_file_is_found_and_a_named_one_is_preferred(tmp_path: Path) -> None:
    mounted, named = tmp_path / "mounted.yaml", tmp_path / "named.yaml"
    mounted.write_text("chunk_size: 32")
    named.write_text("chunk_size: 64")
    assert resolve(Flags(), {}, "cuda", mounted).get("chunk_size") == 32
    environ = {"LMCACHE_CONFIG_FILE": str(named)}
    assert resolve(Flags(), environ, "cuda", mounted).get("chunk_size") == 64
    assert resolve(Flags(), {}, "cuda", NOWHERE).get("chunk_size") == 256


def test_older_names_are_taken_with_a_note(tmp_path: Path) -> None:
    configuration = resolved(
        tmp_path,
        "external_backends: [a]\n",
        LMCACHE_CONTROLLER_URL="http://controller",
        LMCACHE_USE_EXPERIMENTAL="True",
    )
    assert configuration.get("storage_plugins") == ["a"]
    assert configuration.get("controller_pull_url") == "http://controller"
    assert configuration.problems == []
    assert configuration.notes == [
        f"{tmp_path}/lmcache.yaml:1: external_backends is the former name of storage_plugins",
        "LMCACHE_CONTROLLER_URL is the former name of LMCACHE_CONTROLLER_PULL_URL",
        "LMCache no longer reads LMCACHE_USE_EXPERIMENTAL. Remove LMCACHE_USE_EXPERIMENTAL",
    ]
