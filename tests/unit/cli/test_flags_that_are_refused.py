"""No flag is taken and then not done: blanks, stray words, KServe's own parser, KServe's flags."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from kserve_lmcache.cli import arguments
from kserve_lmcache.cli.arguments import build_parser, parse_arguments
from kserve_lmcache.cli.kserve_flags import KSERVE_FLAGS, REFUSED
from kserve_lmcache.compat.kserve import argument_parser as kserve_argument_parser
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.errors import UsageError
from tests.support.server import engine_environment

FLAGS = sorted(build_parser()._option_string_actions)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_and_a_blank_in_one_item_are_refused(flag: str) -> None:
    for item in (f"{flag} 512", f"{flag}  a b", f"{flag} ", f" {flag}", f"{flag}\t1", f" {flag}=1"):
        with pytest.raises(UsageError) as error:
            parse_arguments(["--model_id=a", item])
        assert f"one argument holds {flag} and a blank; write {flag}" in str(error.value)


def test_every_item_with_a_blank_is_named_without_its_value() -> None:
    with pytest.raises(UsageError) as error:
        parse_arguments(["--offload off", "--lmcache remote_url=redis://:hunter2@h"])
    assert "--offload" in str(error.value)
    assert "--lmcache" in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("argument", ["--chat-template=a b", "{% if a %} -- b", "a -b c"])
def test_a_value_may_have_blanks(argument: str) -> None:
    parse_arguments([argument] if argument.startswith("--") else ["--chat-template", argument])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model_id=a", "off"], "--model_id and the word without a flag name different models"),
        (["off", "--model_id=a"], "'off' stands alone: write the flag that it belongs to"),
        (["--model_id=a", "--enable-chunked-prefill", "true"], "'true' stands alone"),
        (["--model=a", "b"], "--model and the word without a flag name different models"),
        (["--model_id=a", "--model=b"], "--model_id and --model name different models"),
        (["--model_id=a", "x=redis://:hunter2@h"], "'x' stands alone"),
        (["a", "b"], "'b' is not a flag"),
        ([""], "an argument is empty"),
        (["--model_id=a", "--lmcache", "off"], ""),  # the configuration refuses it
    ],
)
def test_a_word_without_its_flag(argv: list[str], message: str) -> None:
    if not message:
        parse_arguments(argv)
        return
    with pytest.raises(UsageError) as error:
        parse_arguments(argv)
    assert message in str(error.value)
    assert "hunter2" not in str(error.value)


def test_every_flag_of_kserves_servers_has_a_decision() -> None:
    hugging_face = argparse.ArgumentParser(add_help=False)
    arguments._add_hugging_face_flags(hugging_face)
    actions = [*kserve_argument_parser()._actions, *hugging_face._actions]
    flags = [action.option_strings[0].removeprefix("--").replace("-", "_") for action in actions]
    assert list(KSERVE_FLAGS) == flags


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, decision in KSERVE_FLAGS.items() for value in decision.allowed],
)
def test_the_allowed_values_of_a_flag_that_is_refused_otherwise(name: str, value: object) -> None:
    parse_arguments([f"--{name}={value}"])
    with pytest.raises(UsageError):
        parse_arguments([f"--{name}={'huggingface' if name == 'backend' else 2}"])


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_of_kserves_without_effect_is_refused(name: str) -> None:
    (action,) = (a for a in build_parser()._actions if f"--{name}" in a.option_strings)
    value = list(action.choices)[-1] if action.choices else "1"
    argv = [f"--{name}"] if action.nargs == 0 else [f"--{name}={value}"]
    with pytest.raises(UsageError, match=f"--{name} has no effect here. Leave it out"):
        parse_arguments(argv)


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ([], ["model"]),
        (["--model_name=m"], ["m"]),
        (["--served-model-name", "a", "b"], ["a", "b"]),
        (["--model_name=m", "--served-model-name", "a", "b"], ["m", "a", "b"]),
        (["--model_name=b", "--served-model-name", "a", "b"], ["b", "a"]),
    ],
)
def test_the_model_has_the_names_of_both_flags(argv: list[str], names: list[str]) -> None:
    args = parse_arguments(["--model_id=a", *argv])
    resolve_engine_arguments(args, {})
    assert (args.model_name, args.served_model_name) == (names[0], names)


@pytest.mark.parametrize(
    ("argv", "port"),
    [
        ([], 8080),
        (["--http_port=8080"], 8080),
        (["--http_port=9000", "--port=9001"], 9001),
        (["--ssl_certfile=a", "--ssl_keyfile=b"], 8443),
        (["--ssl_certfile=a", "--ssl_keyfile=b", "--http_port=8080"], 8080),
        (["--ssl_certfile=a", "--ssl_keyfile=b", "--port=8080"], 8080),
    ],
)
def test_the_port_is_the_one_that_was_given(argv: list[str], port: int) -> None:
    args = parse_arguments(["--model_id=a", *argv])
    resolve_engine_arguments(args, {})
    assert args.http_port == port


def run_serve(directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """What the command says, up to the parsed flags: there is no model to serve."""
    return subprocess.run(
        [sys.executable, "-m", "kserve_lmcache", "serve", "--model_dir=/nonexistent", *argv],
        capture_output=True,
        text=True,
        env=engine_environment(PYTHONHASHSEED="0", PROMETHEUS_MULTIPROC_DIR=str(directory)),
    )


def test_kserves_own_parser_sees_no_flag(tmp_path: Path) -> None:
    """It parses sys.argv while KServe is imported, and ends the process with its own message."""
    result = run_serve(tmp_path, "--http_port=abc")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("kserve-lmcache: error: argument --http_port")
    assert "usage:" not in result.stderr


def test_the_file_of_flags_of_vllm(tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("max-model-len: 512\nmodel_name: m\n")
    args = parse_arguments(["--config", str(file), "--model_id=a"])
    assert (args.max_model_len, args.model_name, args.model_id) == (512, "m", "a")
    args = parse_arguments([f"--config={file}", "--model_id=a", "--max-model-len=256"])
    assert args.max_model_len == 256
    result = run_serve(tmp_path, "--config", str(file))
    assert result.returncode == 2
    assert "there is no model" in result.stderr.splitlines()[-1]
