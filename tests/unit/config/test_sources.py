from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configuration import problems, resolved


def test_seven_mistakes_are_seven_problems(tmp_path: Path) -> None:
    file = (
        "chunk_sise: 256\n"
        "local_cpu: maybe\n"
        "max_local_cpu_size: -1\n"
        "remote_config_url: http://service\n"
        "remote_url: redi://redis:6379\n"
        "remote_serde: cachegen\n"
        "local_disk: /cache\n"
    )
    found = problems(tmp_path, file)
    lines = [problem.partition(": ")[0] for problem in found]
    assert sorted(lines) == [f"/lmcache.yaml:{line}" for line in range(1, 8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML (expected ',' or ']', but got '<stream end>')"),
        ("- a\n- b\n", "is a list, but must be a mapping of keys to values"),
        ("text", "is a string, but must be a mapping of keys to values"),
        ("? [a]\n: 1\n", "has a key that is not a string"),
        ("chunk_size: !!bool maybe", "has a value of chunk_size that does not fit its YAML tag"),
        ("chunk_size: !!python/name:os.system", "is not YAML (could not determine a constructor"),
        ("extra_config: " + "[" * 5000, "is nested too deeply"),
        ("extra_config: {a: 2026-99-99}", "has a value of extra_config that does not fit its YAML"),
        ("extra_config: &a {b: *a}", "is not YAML (found unconstructable recursive node)"),
        ("chunk_size: 1\n---\nchunk_size: 2\n", "is not YAML (but found another document)"),
        ("# " + "x" * 2**20, "is larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert message in problem
    assert problem.startswith("/lmcache.yaml")
    assert problem.endswith("Correct the file, or unset LMCACHE_CONFIG_FILE.")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, LMCACHE_CONFIG_FILE="/nonexistent")
    assert problem.startswith("/nonexistent: cannot be read (No such file or directory).")
    (problem,) = problems(tmp_path, LMCACHE_CONFIG_FILE=str(tmp_path))
    assert "cannot be read (Is a directory)" in problem
    (tmp_path / "latin").write_bytes(b"local_disk: caf\xe9")
    (problem,) = problems(tmp_path, LMCACHE_CONFIG_FILE=str(tmp_path / "latin"))
    assert "is not UTF-8" in problem


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    configuration = resolved(tmp_path, text)
    assert (configuration.problems, configuration.notes) == ([], [])


def test_a_key_in_two_lines(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "chunk_size: 32\nchunk_size: 64\n")
    assert problem == ("/lmcache.yaml:2: chunk_size is in line 1 as well. Remove one of them.")


def test_merge_keys_of_yaml(tmp_path: Path) -> None:
    file = "extra_config: &a {b: 1}\n<<: {chunk_size: 64}\nlocal_cpu: true\n"
    assert resolved(tmp_path, file).get("chunk_size") == 64


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LMCACHE_CHUNKSIZE", "LMCACHE_CHUNK_SIZE"),
        ("KSERVE_LMCACHE_OFLOAD", "KSERVE_LMCACHE_OFFLOAD"),
    ],
)
def test_an_unknown_variable_names_the_nearest(tmp_path: Path, name: str, nearest: str) -> None:
    assert problems(tmp_path, **{name: "1"}) == [
        f"{name}: {name} is an unknown variable. Did you mean {nearest}?"
    ]


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert problems(tmp_path, "chunk_sise: 1\nzzz: 1\n") == [
        "/lmcache.yaml:1: chunk_sise is not a key of LMCache. Did you mean chunk_size?",
        "/lmcache.yaml:2: zzz is not a key of LMCache. Remove zzz.",
    ]


def test_flags_without_a_key_or_a_value(tmp_path: Path) -> None:
    assert problems(tmp_path, flags=["chunk_sise=1", "chunk_size", "offload=off"]) == [
        "--lmcache chunk_sise: chunk_sise is not a key of LMCache. Did you mean chunk_size?",
        "--lmcache: 'chunk_size' has no value. Write --lmcache KEY=VALUE.",
        "--lmcache offload: offload is not a key of LMCache. Remove offload.",
    ]


def test_variables_of_a_kubernetes_service_are_ignored(tmp_path: Path) -> None:
    links = {
        "LMCACHE_SERVER_SERVICE_HOST": "10.0.0.1",
        "LMCACHE_SERVER_SERVICE_PORT": "8080",
        "LMCACHE_SERVER_SERVICE_PORT_HTTP": "8080",
        "LMCACHE_SERVER_PORT": "tcp://10.0.0.1:8080",
        "LMCACHE_SERVER_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "LMCACHE_SERVER_PORT_8080_TCP_PROTO": "tcp",
        "LMCACHE_SERVER_PORT_8080_TCP_PORT": "8080",
        "LMCACHE_SERVER_PORT_8080_TCP_ADDR": "10.0.0.1",
        # A Service called lmcache-mp, whose variable has the name of a key.
        "LMCACHE_MP_PORT": "tcp://10.0.0.1:8080",
    }
    configuration = resolved(tmp_path, **links)
    assert (configuration.problems, configuration.get("mp_port")) == ([], 5555)
    assert resolved(tmp_path, LMCACHE_MP_PORT="6000").get("mp_port") == 6000


@pytest.mark.parametrize("variable", ["LMCACHE_REMOTE_URL", "LMCACHE_CONTROLLER_URL"])
def test_an_address_in_another_variable_is_read(tmp_path: Path, variable: str) -> None:
    configuration = resolved(tmp_path, **{variable: "tcp://10.0.0.1:6379"})
    assert [value.value for value in configuration.values.values()].count("tcp://10.0.0.1:6379")
    if variable == "LMCACHE_REMOTE_URL":
        assert "a scheme that LMCache does not know" in str(configuration.problems[0])


def test_variables_that_lmcache_reads_outside_its_table_are_known(tmp_path: Path) -> None:
    elsewhere = {"LMCACHE_LOG_LEVEL": "INFO", "LMCACHE_TRACK_USAGE": "false", "LMCACHE_EC_A": "1"}
    assert problems(tmp_path, **elsewhere) == []


def test_a_password_in_the_file_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "remote_password: hunter2")
    assert problem == (
        "/lmcache.yaml:1: remote_password must not be in a file. Use LMCACHE_REMOTE_PASSWORD or "
        "remote_password_file with a Secret."
    )
