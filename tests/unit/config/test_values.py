from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.configuration import problems, resolved


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("true", "True", "1", "yes", "YES", "on", '"true"')),
        *((text, False) for text in ("false", "FALSE", "0", "no", "off", "'no'")),
    ],
)
def test_booleans(tmp_path: Path, text: str, expected: bool) -> None:
    assert resolved(tmp_path, LMCACHE_SAVE_DECODE_CACHE=text).get("save_decode_cache") is expected
    assert resolved(tmp_path, f"save_decode_cache: {text}").get("save_decode_cache") is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.0", 2.0), ("2", 2.0), ("2Gi", 2.0), ("512Mi", 0.5), ("1Ti", 1024.0), ("1048576Ki", 1.0)],
)
def test_sizes(tmp_path: Path, text: str, expected: float) -> None:
    variable = resolved(tmp_path, LMCACHE_MAX_LOCAL_CPU_SIZE=text)
    assert variable.get("max_local_cpu_size") == expected
    assert resolved(tmp_path, f"max_local_cpu_size: {text}").get("max_local_cpu_size") == expected


@pytest.mark.parametrize(
    ("key", "text", "yaml", "expected"),
    [
        ("lmcache_worker_ports", "1, 2", "[1, 2]", [1, 2]),
        ("lmcache_worker_ports", "1", "1", [1]),
        ("lmcache_worker_ports", "", "", None),
        ("retrieve_locations", "a,b", "[a, b]", ["a", "b"]),
        ("blend_thresholds", "0.1,2", "[0.1, 2]", [0.1, 2.0]),
        ("extra_config", '{"a": {"b": [1]}}', "{a: {b: [1]}}", {"a": {"b": [1]}}),
        ("local_disk", "file:///a/,/b/", "file:///a/,/b/", "/a/,/b/"),
        ("remote_url", "", "", None),
        ("hit_miss_ratio", "0.5", "0.5", 0.5),
    ],
)
def test_each_type_from_a_variable_and_from_the_file(
    tmp_path: Path, key: str, text: str, yaml: str, expected: Any
) -> None:
    assert resolved(tmp_path, **{f"LMCACHE_{key.upper()}": text}).get(key) == expected
    assert resolved(tmp_path, f"{key}: {yaml}").get(key) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chunk_size: many", "chunk_size 'many' is not a whole number. Correct chunk_size."),
        ("chunk_size: 2.5", "chunk_size '2.5' is not a whole number. Correct chunk_size."),
        ("chunk_size: yes", "chunk_size 'True' is not a whole number. Correct chunk_size."),
        ("chunk_size:", "chunk_size is empty. Correct chunk_size."),
        (
            "chunk_size: [1]",
            "chunk_size is a list, but must be a whole number. Correct chunk_size.",
        ),
        (
            "local_cpu: maybe",
            "local_cpu 'maybe' is not a boolean (true, false, yes, no, on, off, 1, 0). "
            "Correct local_cpu.",
        ),
        ("max_local_cpu_size: .nan", "max_local_cpu_size is not a number."),
        ("max_local_cpu_size: 5 GB", "max_local_cpu_size '5 GB' is not a number."),
        ("numa_mode: off", "numa_mode is False, but must be a string: put it in quotes."),
        ("remote_url: {a: b}", "remote_url is a dict, but must be a string."),
        ("lmcache_worker_ports: [a]", "lmcache_worker_ports 'a' is not a whole number."),
        (
            "lmcache_worker_ports: {a: 1}",
            "lmcache_worker_ports is a mapping, but must be a list.",
        ),
        ("extra_config: [1]", "extra_config is a list, but must be a mapping."),
        ("extra_config: {1: a}", "extra_config has the key '1': put it in quotes."),
        ("extra_config: {a: 2026-01-01}", "extra_config has a date in it: put it in quotes."),
        (
            "extra_config: {a: &a [1,1,1,1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a], "
            "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b], d: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]}",
            "extra_config is nested too deeply or too large.",
        ),
        ("hidden_states_retrieve_mode: x", "hidden_states_retrieve_mode hidden_states_retrieve"),
    ],
)
def test_a_value_of_the_wrong_type(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(f"/lmcache.yaml:1: {message}")


def test_text_that_is_not_json(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, LMCACHE_EXTRA_CONFIG="{")
    assert problem.startswith("LMCACHE_EXTRA_CONFIG: extra_config is not JSON (Expecting property")
    (problem,) = problems(tmp_path, LMCACHE_EXTRA_CONFIG="[" * 100_000)
    assert problem.startswith("LMCACHE_EXTRA_CONFIG: extra_config is nested too deeply.")
