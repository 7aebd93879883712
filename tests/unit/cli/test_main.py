"""Which command runs, and what ``kserve-lmcache --help`` shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_lmcache import __version__
from kserve_lmcache.cli import main as cli
from kserve_lmcache.errors import UsageError


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """The commands that were run, with their arguments."""
    found: list[tuple[str, list[str]]] = []

    def run(command: str, arguments: list[str]) -> int:
        found.append((command, arguments))
        return 0

    monkeypatch.setattr(cli, "_run", run)
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("serve", [])),
        (["--model_id=a", "--help"], ("serve", ["--model_id=a", "--help"])),
        (["a-model"], ("serve", ["a-model"])),
        (["serve", "--model_id=a"], ("serve", ["--model_id=a"])),
        (["serve", "--help"], ("serve", ["--help"])),
        (["config", "--json"], ("config", ["--json"])),
        (["doctor"], ("doctor", [])),
        (["bench", "report", "x"], ("bench", ["report", "x"])),
        (["demo-model", "here"], ("demo-model", ["here"])),
    ],
)
def test_the_command(
    arguments: list[str], expected: tuple[str, list[str]], ran: list[tuple[str, list[str]]]
) -> None:
    assert cli.main(arguments) == 0
    assert ran == [expected]


def test_help_has_one_line_for_each_command(
    ran: list[tuple[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert ran == []
    for command, text in cli.COMMANDS.items():
        assert any(line.split() == [command, *text.split()] for line in lines), command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"kserve-lmcache {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("this cannot be"), 2, "this cannot be"),
        (UsageError("two:\n  - one\n  - other"), 2, "two: one other"),
        (ValueError("first\nsecond"), 1, "ValueError: first second. This is unexpected; "),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(143), 143, "stopped by SIGTERM during the start"),
        (SystemExit(3), 3, "a library ended the process. This is unexpected; "),
        (SystemExit("no such thing"), 1, "no such thing. This is unexpected; "),
    ],
)
def test_whatever_ends_the_server_is_one_line_with_the_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(command: str, arguments: list[str]) -> int:
        raise error

    told = tmp_path / "termination-log"
    told.touch()
    monkeypatch.setenv("TERMINATION_LOG", str(told))
    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["serve"]) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"kserve-lmcache: error: {line}")
    assert said.endswith(f" (exit code {code})")
    assert told.read_text() == said


@pytest.mark.parametrize("command", ["config", "doctor", "bench", "demo-model"])
def test_an_error_of_another_command_has_no_traceback(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = iter([UsageError("this cannot be"), OSError("no disk")])

    def fail(command: str, arguments: list[str]) -> int:
        raise next(errors)

    monkeypatch.setattr(cli, "_run", fail)
    assert (cli.main([command]), cli.main([command])) == (2, 1)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "kserve-lmcache: error: this cannot be"
    assert second.startswith("kserve-lmcache: error: OSError: no disk. This is unexpected")
