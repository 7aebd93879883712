from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from kserve_lmcache.errors import ConfigurationError
from kserve_lmcache.lmcache_config import Setting, hand_over, resolve, write

DEFAULTS = {"chunk_size": Setting(256, "default")}
NOWHERE = Path("/nonexistent/lmcache_config.yaml")


def resolved(
    tmp_path: Path, file: str | None = None, **environ: str
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    if file is not None:
        path = tmp_path / "lmcache.yaml"
        path.write_text(file)
        environ["LMCACHE_CONFIG_FILE"] = str(path)
    settings, notes = resolve(environ, DEFAULTS, NOWHERE)
    return (
        {name: setting.value for name, setting in settings.items()},
        {name: setting.source for name, setting in settings.items()},
        notes,
    )


def problems(tmp_path: Path, file: str | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigurationError) as error:
        resolved(tmp_path, file, **environ)
    return [str(problem).replace(str(tmp_path), "") for problem in error.value.problems]


def test_variables_beat_defaults(tmp_path: Path) -> None:
    values, sources, _ = resolved(tmp_path, LMCACHE_CHUNK_SIZE="128")
    assert values == {"chunk_size": 128}
    assert sources == {"chunk_size": "LMCACHE_CHUNK_SIZE"}


def test_the_file_beats_variables_and_says_so(tmp_path: Path) -> None:
    values, sources, notes = resolved(
        tmp_path, "local_cpu: true\nchunk_size: 64\n", LMCACHE_CHUNK_SIZE="128"
    )
    assert values == {"chunk_size": 64, "local_cpu": True}
    assert sources["chunk_size"].endswith("lmcache.yaml:2")
    (note,) = notes
    assert note.startswith("LMCACHE_CHUNK_SIZE is not used: ")


def test_the_mounted_file_is_found(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted.yaml"
    mounted.write_text("chunk_size: 32")
    settings, _ = resolve({}, DEFAULTS, mounted)
    assert settings["chunk_size"].value == 32


def test_extra_config_merges_key_by_key(tmp_path: Path) -> None:
    values, _, _ = resolved(
        tmp_path,
        "extra_config:\n  a: 1\n",
        LMCACHE_EXTRA_CONFIG='{"a": 2, "b": 3}',
    )
    assert values["extra_config"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("yes", True), ("On", True), ("1", True), ("no", False), ("OFF", False), ("0", False)],
)
def test_booleans(tmp_path: Path, text: str, expected: bool) -> None:
    values, _, _ = resolved(tmp_path, LMCACHE_LOCAL_CPU=text)
    assert values["local_cpu"] is expected


@pytest.mark.parametrize(
    ("text", "expected"), [("2.0", 2.0), ("2Gi", 2.0), ("512Mi", 0.5), ("1Ti", 1024.0)]
)
def test_sizes(tmp_path: Path, text: str, expected: float) -> None:
    assert resolved(tmp_path, LMCACHE_MAX_LOCAL_CPU_SIZE=text)[0]["max_local_cpu_size"] == expected


def test_lists(tmp_path: Path) -> None:
    environment, _, _ = resolved(tmp_path, LMCACHE_LMCACHE_WORKER_PORTS="1, 2")
    file, _, _ = resolved(tmp_path, "lmcache_worker_ports: [1, 2]")
    assert environment["lmcache_worker_ports"] == file["lmcache_worker_ports"] == [1, 2]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    file = (
        "chunk_sise: 256\nlocal_cpu: maybe\nmax_local_cpu_size: -1\nremote_config_url: http://x\n"
    )
    found = problems(tmp_path, file, LMCACHE_PIN_TIMEOUT_SEC="soon", LMCACHE_EXTRA_CONFIG="{")
    assert (
        found[0] == "LMCACHE_EXTRA_CONFIG: is not JSON: Expecting property name enclosed in "
        "double quotes: line 1 column 2 (char 1). Correct extra_config."
    )
    assert found[1:] == [
        "LMCACHE_PIN_TIMEOUT_SEC: 'soon' is not a whole number. Correct pin_timeout_sec.",
        "/lmcache.yaml:1: chunk_sise is not a key of LMCache. Did you mean chunk_size?",
        "/lmcache.yaml:2: 'maybe' is not a boolean (true, false, yes, no, on, off, 1, 0). "
        "Correct local_cpu.",
        "/lmcache.yaml:3: max_local_cpu_size must be positive, got -1.0. "
        "Correct max_local_cpu_size.",
        "/lmcache.yaml:4: remote_config_url would post the whole environment to that address. "
        "Correct remote_config_url.",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- a\n- b\n", "holds a list where a mapping of keys to values must stand"),
        ("text", "holds a str where"),
        ("? [a]\n: 1\n", "is not YAML (found unhashable key)"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert message in problem
    assert problem.startswith("/lmcache.yaml")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read \\(No such file or directory\\)"):
        resolve({"LMCACHE_CONFIG_FILE": "/nonexistent"}, {}, NOWHERE)


def test_what_lmcache_reads_is_what_was_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmcache.v1.config import LMCacheEngineConfig

    environ = {"LMCACHE_CHUNK_SIZE": "128", "LMCACHE_LOCAL_CPU": "no", "LMCACHE_LOG_LEVEL": "INFO"}
    settings, _ = resolve(environ, DEFAULTS, NOWHERE)
    path = tmp_path / "effective.yaml"
    write(settings, path)
    hand_over(path, environ)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert environ == {"LMCACHE_CONFIG_FILE": str(path), "LMCACHE_LOG_LEVEL": "INFO"}

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    config = LMCacheEngineConfig.from_file(str(path))
    config.update_config_from_env()
    assert config.chunk_size == 128
    assert config.local_cpu is False
    assert yaml.safe_load(path.read_text()) == {"chunk_size": 128, "local_cpu": False}
