"""The flags of the server, read without vLLM, and by its own parser alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.cli.light_arguments import parse_lightly
from kserve_lmcache.config.flags import flags_of
from kserve_lmcache.engine.resolution import resolve_arguments
from kserve_lmcache.errors import UsageError

CONNECTOR = json.dumps(
    {
        "kv_connector": "LMCacheConnectorV1",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"lmcache.chunk_size": 64},
    }
)
FIELD = json.dumps(
    {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": 2**30,
        },
    }
)
READ = ("model_id", "model_tag", "model", "model_dir", "revision", "enable_grpc", "ssl_certfile")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["a-model", "--max-model-len", "512"],
        ["--model_id=a", "--tenant_header=X", "--remote-ttl", "5", "-tp", "2"],
        ["--model-id", "a", "--lmcache", "chunk_size=128", "local_cpu=true", "--enforce-eager"],
        ["--model=a", f"--kv-transfer-config={CONNECTOR}", "--served-model-name", "a", "b"],
        ["--model=a", "--kv_transfer_config", f"'{CONNECTOR}'"],
        ["--model_id=a", "--enable_grpc=true", "--api-key", "x", "y", "--ssl_certfile=/c"],
        ["--model_dir=/m", "--revision=main", "--log-level=debug"],
        ["--model_dir=/m", "--kv-transfer-config", FIELD, "--root-routes=true"],
    ],
)
def test_both_parsers_read_the_same(argv: list[str]) -> None:
    light, _ = parse_lightly(argv)
    args = parse_arguments(argv)
    assert flags_of(light) == flags_of(args)
    assert {name: getattr(light, name) for name in READ} == {
        name: getattr(args, name) for name in READ
    }
    assert bool(light.api_key) == bool(args.api_key)


EVENTS = '{"enable_kv_cache_events": true, "topic": "kv@pod@model"}'


@pytest.mark.parametrize(
    ("flags", "is_refused"),
    [
        ([f"--kv-events-config={EVENTS}", "--mode=multiprocess"], True),
        ([f"--kv-events-config={EVENTS}", "--mode=multiprocess", "--offload=off"], False),
        ([f"--kv-events-config={EVENTS}"], False),
        (["--kv-events-config={}", "--mode=multiprocess"], False),
        (["--mode=multiprocess"], False),
    ],
)
def test_events_are_refused_where_the_tiers_cannot_take_part(
    flags: list[str], is_refused: bool
) -> None:
    for parsed in (parse_lightly(flags)[0], parse_arguments(flags)):
        problems = resolve_arguments(parsed, {}, "cpu").problems
        texts = [str(each) for each in problems if "--kv-events-config" in str(each)]
        assert bool(texts) == is_refused
        assert all("do not have the tiers with mode=multiprocess" in each for each in texts)


def test_a_file_of_flags(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("offload: off\nmax-model-len: 512\nlmcache: [chunk_size=64]\nremote_ttl: 7\n")
    argv = ["--model_id=a", "--config", str(file), "--remote-ttl=8"]
    for each in (argv, ["--model_id=a", f"--config={file}", "--remote-ttl=8"]):
        light, unchecked = parse_lightly(each)
        assert unchecked == ["--max-model-len"]
        assert (light.setting_remote_ttl, light.lmcache) == ("8", ["chunk_size=64"])
    file.write_text("a: [password=hunter2")
    with pytest.raises(UsageError, match="is no file of flags in YAML") as error:
        parse_lightly(argv)
    assert "hunter2" not in str(error.value)


def test_flags_that_are_not_checked_are_named_without_values() -> None:
    argv = ["--model_id=a", "--hf-token=hunter2", "--max_model_len", "512", "-O3", "--seed", "-1"]
    _, unchecked = parse_lightly(argv)
    assert unchecked == ["--hf-token", "--max-model-len", "--seed"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--offload off"], "one argument holds --offload and a blank"),
        (["a", "--model_id=b"], "name different models"),
        (["--kv-transfer-config=hunter2"], "is no mapping in JSON"),
        (["--enable_grpc=maybe"], "is neither true nor false"),
        (["--remote-ttl"], "expected one argument"),
    ],
)
def test_what_no_parser_would_take(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_lightly(argv)
    assert "hunter2" not in str(error.value)
