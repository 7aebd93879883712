from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from kserve_lmcache.cli.arguments import build_parser, parse_arguments
from kserve_lmcache.config.settings import SETTINGS
from kserve_lmcache.errors import UsageError

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
