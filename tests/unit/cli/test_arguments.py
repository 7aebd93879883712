from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from kserve_lmcache.cli import arguments, config
from kserve_lmcache.cli.arguments import KSERVE, SAME, SHARED, build_parser, parse_arguments
from kserve_lmcache.compat.kserve import argument_parser as kserve_argument_parser
from kserve_lmcache.compat.vllm import make_arg_parser, validate_parsed_serve_args
from kserve_lmcache.config.flags import add_setting_flags
from kserve_lmcache.config.settings import SETTINGS
from kserve_lmcache.engine import arguments as engine_arguments
from kserve_lmcache.errors import KServeLMCacheError, UsageError

CONNECTOR = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}


def test_flags_of_all_three_servers() -> None:
    args = parse_arguments(
        [
            "--model_name=llama3",
            "--model_id=org/model",
            "--model_revision=main",
            "--http_port=9000",
            "--enable_docs_url=true",
            "--max-model-len=10000",
            "--enable-chunked-prefill",
            "--offload-required=false",
        ]
    )
    assert (args.model_name, args.model_id, args.model_revision) == ("llama3", "org/model", "main")
    assert (args.http_port, args.max_model_len, args.enable_chunked_prefill) == (9000, 10000, True)
    assert (args.setting_offload_required, args.setting_offload) == ("false", None)


def test_every_long_flag_works_with_dashes_and_with_underscores() -> None:
    parser = build_parser()
    known = parser._option_string_actions
    flags = [flag for flag in known if flag.startswith("--")]
    assert len(flags) > 200
    for flag in flags:
        # vLLM's parser turns every underscore of a flag into a dash before it looks it up.
        assert known["--" + flag[2:].replace("_", "-")].dest == known[flag].dest


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of which ours is made, each alone."""
    hugging_face = argparse.ArgumentParser(add_help=False)
    arguments._add_hugging_face_flags(hugging_face)
    settings = argparse.ArgumentParser(add_help=False)
    add_setting_flags(settings)
    return {
        "KServe": kserve_argument_parser(),
        "KServe's Hugging Face server": hugging_face,
        "vLLM": make_arg_parser(FlexibleArgumentParser()),
        "settings": settings,
        "config": config.build_parser(),
    }


def shared_flags(parsers: Mapping[str, argparse.ArgumentParser]) -> set[str]:
    """The flags that more than one parser has, in any spelling."""
    flags = {
        name: {
            option.replace("_", "-")
            for action in parser._actions
            for option in action.option_strings
            if action.dest != "help"
        }
        for name, parser in parsers.items()
    }
    return {flag for one, other in combinations(flags.values(), 2) for flag in one & other}


def test_every_flag_that_two_parsers_have_has_a_decision() -> None:
    found = shared_flags(parsers())
    assert found <= set(SHARED), "say in SHARED whose each of these flags is"
    assert found >= {flag for flag, owner in SHARED.items() if owner == SAME}


@pytest.mark.parametrize("spelling", ["--model-impl", "--model_impl"])
def test_a_new_clash_is_found(spelling: str) -> None:
    clashing = parsers()
    clashing["KServe"].add_argument(spelling)
    assert shared_flags(clashing) - set(SHARED) == {"--model-impl"}


def test_no_two_flags_set_one_attribute_by_accident() -> None:
    attributes = {
        name: {action.dest: action.option_strings for action in parser._actions}
        for name, parser in parsers().items()
    }
    found = {
        name
        for one, other in combinations(attributes.values(), 2)
        for name in set(one) & set(other) - {"help"}
        if f"--{name.replace('_', '-')}" not in SHARED
    }
    assert found == {"max_model_len"}  # --max_length, the older name of vLLM's flag


@pytest.mark.parametrize("flag", [flag for flag, owner in SHARED.items() if owner == SAME])
def test_a_flag_that_is_the_same_sets_one_attribute(flag: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    for spelling in (flag, f"--{name}"):
        assert getattr(parse_arguments([f"{spelling}=given"]), name) == "given"


@pytest.mark.parametrize("flag", [flag for flag, owner in SHARED.items() if owner == KSERVE])
def test_a_flag_of_kserves_is_kserves_in_both_spellings(flag: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    default = kserve_argument_parser().get_default(name)
    assert getattr(parse_arguments([]), f"kserve_{name}") == default
    given: Any = "9000" if default is None else type(default)("9000")
    for spelling in (flag, f"--{name}"):
        for argv in ([f"{spelling}=9000"], [spelling, "9000"]):
            args = parse_arguments(argv)
            assert getattr(args, f"kserve_{name}") == given
            assert getattr(args, name, None) is None, "vLLM would read it"
    (action,) = (action for action in build_parser()._actions if flag in action.option_strings)
    assert action.option_strings == [f"--{name}", flag]
    assert action.help is not None
    assert "This is KServe's flag, not vLLM's" in action.help


def test_vllm_takes_the_arguments_and_none_of_kserves() -> None:
    args = parse_arguments(["--grpc-port=8081", "--log-config-file=log.yaml", "--log-level=debug"])
    validate_parsed_serve_args(args)
    read = {field.name for field in fields(AsyncEngineArgs) if hasattr(args, field.name)}
    assert len(read) > 100
    assert read.isdisjoint({"grpc_port", "log_config_file", "log_level"})
    assert (args.kserve_grpc_port, args.setting_log_level) == (8081, "debug")


def test_building_the_parser_leaves_kserves_parser_as_it_is() -> None:
    before = kserve_argument_parser().format_help()
    build_parser()
    assert kserve_argument_parser().format_help() == before


@pytest.mark.parametrize("flag", ["--max-model-len", "--max_model_len", "--max_length"])
def test_older_and_newer_spellings(flag: str) -> None:
    assert parse_arguments([f"{flag}=512"]).max_model_len == 512


@pytest.mark.parametrize(
    "argv",
    [
        [f"--kv-transfer-config={json.dumps(CONNECTOR)}"],
        [f"--kv-transfer-config='{json.dumps(CONNECTOR)}'"],
        [f"--kv_transfer_config='{json.dumps(CONNECTOR)}'"],
        ["--kv-transfer-config", f"'{json.dumps(CONNECTOR)}'"],
    ],
)
def test_json_with_and_without_the_quotes_that_yaml_keeps(argv: Sequence[str]) -> None:
    config = parse_arguments(argv).kv_transfer_config
    assert (config.kv_connector, config.kv_role) == ("LMCacheConnectorV1", "kv_both")


def test_quotes_around_anything_else_stay() -> None:
    assert parse_arguments(["--model_name='it'"]).model_name == "'it'"


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--max-model-length=5", "--max-model-len"),
        ("--model_nam=x", "--model-name"),
        ("--kv-transfer-confg={}", "--kv-transfer-config"),
    ],
)
def test_an_unknown_flag_names_the_nearest(flag: str, nearest: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_arguments([flag])
    assert f"there is no flag {flag.split('=')[0]}; did you mean" in str(error.value).replace(
        "model-nam;", "model_nam;"
    )
    assert nearest in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--root-path=/secret"], "--root-path has no effect"),
        (["--uds=/run/x.sock"], "--uds has no effect"),
        (["--sse-keep-alive-interval=5"], "--sse-keep-alive-interval"),  # unknown before 0.32
        (["--workers=2"], "--workers above 1 never serves"),
        (["--backend=huggingface"], "no KV cache to offload"),
    ],
)
def test_a_flag_that_could_not_take_effect_is_refused(argv: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_arguments(argv)
    assert "secret" not in str(error.value)


def test_cached_tokens_are_reported_by_default_and_grpc_is_closed() -> None:
    args = parse_arguments([])
    assert args.enable_prompt_tokens_details is True
    assert args.enable_grpc is False
    assert (
        parse_arguments(["--no-enable-prompt-tokens-details"]).enable_prompt_tokens_details is False
    )


def test_flags_of_vllms_http_server_that_have_their_effect_here() -> None:
    args = parse_arguments(
        ["--api-key=a", "--host=::1", '--allowed-origins=["https://x"]', "--ssl-ciphers=TLSv1.2"]
    )
    assert (args.api_key, args.host, args.allowed_origins) == (["a"], "::1", ["https://x"])


def test_every_setting_of_ours_has_its_flag_and_help_but_no_secret_does() -> None:
    known = build_parser()._option_string_actions
    for setting in SETTINGS:
        if setting.secret:
            assert setting.flag not in known
        else:
            expected = f"{setting.help} Also {setting.environment_variable}."
            assert known[setting.flag].help == expected


def test_a_machine_without_a_device_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the image for GPUs without a GPU: vLLM finds no platform there."""
    monkeypatch.setattr(engine_arguments, "device", lambda: "")
    with pytest.raises(KServeLMCacheError, match=r"no device: torch .* --gpus all.* DEVICE=cpu"):
        parse_arguments(["--model_id=org/model"])
